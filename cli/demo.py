"""``prefold demo``."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from prefold.cli.options import Json


def demo(
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Keep the folded checkpoint here; else it is removed.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Fold the small trained model that comes with prefold, verify it, and let both write.

    Example: `prefold demo`
    """
    from prefold.verify import shared_server

    shared_server()  # what it imports, it imports while this process does
    from prefold.cli.show.show import show_json

    with tempfile.TemporaryDirectory(prefix="prefold-demo-") as scratch:
        figures = _run(out or Path(scratch) / "folded", force=force, quiet=as_json)
    if as_json:
        show_json(figures)


def _run(out: Path, *, force: bool, quiet: bool) -> dict[str, object]:
    from prefold.cli.show.progress import ShownProgress
    from prefold.cli.show.show import byte_bars, say, show_inspection, show_verification
    from prefold.convert import FoldOptions, convert_checkpoint
    from prefold.convert.fold import quiet_loading
    from prefold.demo import CHECKPOINT
    from prefold.demo.sample import sample
    from prefold.verify import Verification, require_verified

    with byte_bars() as bars:
        shown = ShownProgress(bars)
        check = require_verified(speed=True, progress=shown.doing)
        conversion = convert_checkpoint(
            str(CHECKPOINT), out, options=FoldOptions(force=force), check=check, progress=shown
        )
    with quiet_loading():
        samples = {"source": sample(CHECKPOINT), "folded": sample(out)}
    if not quiet:
        show_inspection(conversion.inspection)
        if isinstance(conversion.verification, Verification):
            show_verification(conversion.verification)
        for name, made in samples.items():
            say(f"{name}: perplexity {made.perplexity:.4f} on held-out text; continues greedily:", "bold")
            say("  " + " ".join((made.prompt + made.continuation).split()))
    return conversion.as_json() | {name: made.as_json() for name, made in samples.items()}
