"""The picture of a tree over time: live branches, tokens, and what each scheme reads. It needs matplotlib."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefold.common.figures import INK, STYLE, drawn, require_plot
from prefold.tree.count.reads import Counted, reads_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = NDArray[np.float64]
KINDS = (".svg", ".png")
_INCHES = (9, 8)
_POINTS = 1500  # more than the picture is wide
_GIGA = 1e9
_COLOURS = {
    "sequence-wise": "#a3343a",
    "medusa": "#b7791f",
    "node": "#6b4fa0",
    "node-chunk": "#2f7d4a",
    "flatten": "#2f6fb0",
}
_STYLE = STYLE | {"lines.linewidth": 1.3}


def write_picture(counted: Counted, title: str, file: Path) -> None:
    """Draw what was counted into a file, ``.svg`` or ``.png``."""
    require_plot(file, KINDS)
    file.write_bytes(picture(counted, title, file.suffix.lower().removeprefix(".")))


def picture(counted: Counted, title: str, kind: str = "svg") -> bytes:
    """Draw branches, tokens and reads over the steps, one below the other; ``kind`` is ``svg`` or ``png``."""

    def draw(figure: "Figure") -> None:
        figure.suptitle(title.replace("$", r"\$"))
        _draw(figure.subplots(3, 1, sharex=True), over_time(counted), len(counted.trees))

    return drawn(draw, _INCHES, kind, _STYLE)


@dataclass(frozen=True, eq=False)
class OverTime:
    """Means over all trees at each step, ``[steps]``; ``reads`` are bytes of all layers, in full, by scheme."""

    branches: Series
    tree_tokens: Series
    path_tokens: Series
    reads: dict[str, Series]


def over_time(counted: Counted) -> OverTime:
    """Return the reads of each step."""
    steps = max(len(each.branches) for each in counted.trees)
    names = counted.trees[0].totals()
    parts = [
        (attention, {name: _mean([getattr(each, name) for each in trees], steps) for name in names})
        for attention, trees in counted.parts
    ]
    # Bytes are a sum of columns, each by a constant; what one of each column costs is that constant.
    one = {name: {each: Fraction(each == name) for each in names} for name in names}
    reads = {
        scheme.name: np.sum(
            [
                float(reads_of(scheme, attention, one[name]).full) * means[name]
                for attention, means in parts
                for name in names
            ],
            axis=0,
        )
        for scheme in counted.schemes
    }
    seen = parts[0][1]
    return OverTime(seen["branches"], seen["tree_tokens"], seen["path_tokens"], reads)


def _mean(columns: list[NDArray[np.int64]], steps: int) -> Series:
    total = np.zeros(steps)
    for column in columns:
        total[: len(column)] += column
    return total / len(columns)


def _draw(panels: "np.ndarray[Any, Any]", shown: OverTime, trees: int) -> None:
    branches, tokens, reads = panels
    of = "" if trees == 1 else ", mean per tree"
    _line(branches, shown.branches, color=INK)
    branches.yaxis.get_major_locator().set_params(integer=True)
    branches.set_ylabel(f"live branches{of}")
    _line(tokens, shown.path_tokens, color=_COLOURS["sequence-wise"], label="paths of all branches")
    _line(tokens, shown.tree_tokens, color=_COLOURS["flatten"], label="tree")
    tokens.set_ylabel(f"tokens{of}")
    for name, series in shown.reads.items():
        # Flatten's line often lies on that of Node-Chunk: gaps let it be seen.
        _line(reads, series / _GIGA, color=_COLOURS[name], label=name, linestyle="--" if name == "flatten" else "-")
    reads.set(ylabel=f"GB read and written per step{of}", xlabel="step")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,g}")
    for axes in (tokens, reads):
        # A place that is chosen by looking at every point takes seconds.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    reads.xaxis.set_major_formatter("{x:,.0f}")


def _line(axes: "Axes", series: Series, **style: Any) -> None:
    steps = np.unique(np.linspace(0, len(series) - 1, _POINTS).round().astype(int)) if len(series) else slice(0)
    axes.plot(np.arange(1, len(series) + 1)[steps], series[steps], **style)
