"""The picture of a tree over time: live branches, tokens, and what each scheme reads. It needs matplotlib."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefold.tree.count.over_time import OverTime, Series, over_time
from prefold.tree.count.reads import Counted
from prefold.tree.errors import TreeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
_INK, _GRID = "#1f2328", "#d0d7de"
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "prefold",  # the same figures give the same bytes
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "legend.fontsize": 9,
    "lines.linewidth": 1.3,
    "figure.facecolor": "#ffffff",  # legible on a dark page, too
    "axes.facecolor": "#ffffff",
}


def require_picture(file: Path) -> None:
    """Refuse, before any work, what no picture can be written as; ``TreeError`` says which or what is missing."""
    if file.suffix.lower() not in KINDS:
        raise TreeError(f"{file}: a plot is one of {', '.join(KINDS)}")
    if not file.absolute().parent.is_dir():
        raise TreeError(f"{file}: there is no folder {file.parent}")
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise TreeError("plots need matplotlib: pip install 'prefold[plot]'") from error
    del mpl


def write_picture(counted: Counted, title: str, file: Path) -> None:
    """Draw what was counted into a file, ``.svg`` or ``.png``."""
    require_picture(file)
    drawn = picture(counted, title, file.suffix.lower().removeprefix("."))
    file.write_bytes(drawn)


def picture(counted: Counted, title: str, kind: str = "svg") -> bytes:
    """Draw branches, tokens and reads over the steps, one below the other; ``kind`` is ``svg`` or ``png``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = BytesIO()
    style: Any = mpl.rcParamsDefault | _STYLE
    with mpl.rc_context(style):  # whatever a user's own settings are
        figure = Figure(figsize=_INCHES, layout="constrained")
        figure.suptitle(title.replace("$", r"\$"))
        _draw(figure.subplots(3, 1, sharex=True), over_time(counted), len(counted.trees))
        undated: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=150, metadata=undated)
    return file.getvalue()


def _draw(panels: "np.ndarray[Any, Any]", shown: OverTime, trees: int) -> None:
    branches, tokens, reads = panels
    of = "" if trees == 1 else ", mean per tree"
    _line(branches, shown.branches, color=_INK)
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
    """Draw a series, thinned to what can be seen."""
    steps = np.unique(np.linspace(0, len(series) - 1, _POINTS).round().astype(int)) if len(series) else slice(0)
    axes.plot(np.arange(1, len(series) + 1)[steps], series[steps], **style)
