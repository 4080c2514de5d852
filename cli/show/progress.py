"""Work under way, shown on stderr."""

from collections.abc import Callable

from rich.progress import Progress, TaskID

from prefold.cli.show.show import err, note
from prefold.convert import ConversionProgress, Inspection


class ShownProgress(ConversionProgress):
    """Shows a conversion: the verdict before it starts, then a bar for each stage.

    ``prepared`` is called once the source has been looked at, before the first byte is written.
    """

    def __init__(self, bars: Progress, prepared: Callable[[], None] | None = None) -> None:
        self._bars, self._prepared = bars, prepared
        self._tasks: dict[str, TaskID] = {}

    def inspected(self, inspection: Inspection) -> None:
        """Say what folding is worth before anything is written."""
        note(f"{inspection.model}: {inspection.verdict}")
        if self._prepared:
            self._prepared()

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar on by ``done`` bytes."""
        if stage not in self._tasks:
            self._bars.start()  # not sooner: downloads draw bars of their own
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.advance(self._tasks[stage], done)

    def doing(self, what: str) -> None:
        """Name a step that has no measure."""
        if err.is_terminal:
            self._bars.add_task(what, total=None)
