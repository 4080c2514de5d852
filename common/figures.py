"""Figures that are the same bytes whenever they are drawn from the same numbers. They need matplotlib."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefold.common.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#1f2328", "#d0d7de"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "prefold",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "legend.fontsize": 9,
    "figure.facecolor": "#ffffff",  # legible on a dark page, too
    "axes.facecolor": "#ffffff",
}


def require_plot(file: Path, kinds: Sequence[str]) -> None:
    """Refuse, before any work, a file that no plot can be written to.

    Raises:
        UsageError: its name ends otherwise, its folder is not there, or matplotlib is not installed.
    """
    if file.suffix.lower() not in kinds:
        raise UsageError(f"{file}: a plot is one of {', '.join(kinds)}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file}: there is no folder {file.parent}")
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'prefold[plot]'") from error
    del mpl


def drawn(
    draw: Callable[["Figure"], None], size: tuple[float, float], kind: str = "svg", style: dict[str, Any] = STYLE
) -> bytes:
    """Return a figure of ``size`` inches as ``svg`` or ``png``, whatever a user's own settings are."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = BytesIO()
    with mpl.rc_context(mpl.rcParamsDefault | style):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        undated: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=150, metadata=undated)
    return file.getvalue()
