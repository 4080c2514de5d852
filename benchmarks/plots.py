"""Plots as SVG: the same figures give the same bytes, and text stays text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from prefold.common.figures import drawn

Figures = list[dict[str, Any]]
# Draws the stored figures of a section, so that a page can be drawn again without measuring.
Plot = Callable[[Figure, Figures], None]

PICTURES = "pictures"
COLOURS = ("#2f6fb0", "#b7791f", "#2f7d4a", "#a3343a", "#6b4fa0", "#3d8f99", "#59636e", "#c2559b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _GRID = "#1f2328", "#d0d7de"
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "prefold",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 11,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 12,
    "figure.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.framealpha": 0.9,
    "legend.edgecolor": _GRID,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    # Legible on a dark page, too: nothing shines through.
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
}


def svg(plot: Plot, figures: Figures, *, size: tuple[float, float] = (8, 4.5)) -> str:
    """Draw figures and return the SVG; ``size`` is in inches of 72 points."""
    text = drawn(lambda figure: plot(figure, figures), size, style=_STYLE).decode()
    return "\n".join(line.strip() for line in text.splitlines()) + "\n"


def save(folder: Path, name: str, plot: Plot, figures: Figures) -> Path:
    """Draw figures into ``folder/NAME.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(svg(plot, figures), encoding="utf-8")
    return path


def link(name: str, told: str) -> str:
    """Return the Markdown that shows a plot; ``told`` says what is on it to those who do not see it."""
    return f"![{told}]({PICTURES}/{name}.svg)"


def colour(index: int) -> str:
    """Return the colour of the n-th of several things."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of the n-th of several things."""
    return MARKERS[index % len(MARKERS)]


def powers_of_two(axes: Axes, values: list[int]) -> None:
    """Scale the x axis by logarithms, and write numbers of tokens as they are."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:,}" if index % 2 == 0 else "" for index, value in enumerate(values)])
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_numbers(axes: Axes) -> None:
    """Write the numbers of a logarithmic y axis as they are."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
