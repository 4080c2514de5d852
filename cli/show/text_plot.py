"""Plots of characters, for terminals and for files that are read as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10

Spell = Callable[[float], str]


@dataclass(frozen=True)
class Dot:
    """A character at a place; later ones cover earlier ones."""

    x: float
    y: float
    mark: str


@dataclass(frozen=True)
class Axis:
    """One axis: its ends, whether it counts by powers of ten, and how its numbers are written."""

    low: float
    high: float
    spell: Spell
    logarithmic: bool = True

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high end."""
        low, high, at = (log10(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5

    def value(self, place: float) -> float:
        """Return the value that lies there."""
        if not self.logarithmic:
            return self.low + place * (self.high - self.low)
        return float(10 ** (log10(self.low) + place * (log10(self.high) - log10(self.low))))


def draw(dots: Sequence[Dot], x: Axis, y: Axis, *, width: int = 64, height: int = 14) -> list[str]:
    """Return the lines of a plot, its axes with it."""
    grid = [[" "] * width for _ in range(height)]
    for dot in dots:
        column, row = round(x.place(dot.x) * (width - 1)), round(y.place(dot.y) * (height - 1))
        if 0 <= column < width and 0 <= row < height:
            grid[row][column] = dot.mark
    ticks = {row: y.spell(y.value(row / (height - 1))) for row in (0, height // 2, height - 1)}
    margin = max(map(len, ticks.values()))
    lines = [f"{ticks.get(row, ''):>{margin}} |{''.join(grid[row])}".rstrip() for row in reversed(range(height))]
    return [*lines, f"{'':>{margin}} +{'-' * width}", f"{'':>{margin}}  {_ticks(x, width)}"]


def _ticks(x: Axis, width: int) -> str:
    texts = [x.spell(x.value(place)) for place in (0, 0.5, 1)]
    return f"{texts[0]}{texts[1]:^{width - len(texts[0]) - len(texts[2])}}{texts[2]}"


def curve(of: Callable[[float], float], x: Axis, mark: str = ".", steps: int = 256) -> list[Dot]:
    """Return a line as dots."""
    places = [x.value(step / (steps - 1)) for step in range(steps)]
    return [Dot(place, of(place), mark) for place in places]
