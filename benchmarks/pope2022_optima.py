"""Where layouts are at their best, from the formulas of Pope et al. 2022 (section 3.2)."""

from collections.abc import Sequence
from math import sqrt

from prefold.plan import Mesh
from prefold.plan.cost.layouts import Layout, Part, collectives, volume


def best_split(chips: int, hidden_size: int, parts: Sequence[Part]) -> tuple[int, int]:
    """Return the X and YZ that send the least in the 2D weight-stationary layout (section 3.2.2)."""
    splits = [(x, chips // x) for x in range(1, chips + 1) if chips % x == 0]

    def sent(split: tuple[int, int]) -> float:
        mesh = Mesh(*split, 1)
        return sum(volume(collectives("2d-ws", mesh, 1, hidden_size, part)) for part in parts)

    return min(splits, key=sent)


def best_split_continuous(chips: int, hidden_size: int, intermediate_size: int) -> tuple[float, float]:
    """Return X and YZ that send the least if they need not be whole: ``sqrt(nE/F)`` and ``sqrt(nF/E)``."""
    return sqrt(chips * hidden_size / intermediate_size), sqrt(chips * intermediate_size / hidden_size)


def crossover(first: Layout, second: Layout, mesh: Mesh, hidden_size: int, part: Part) -> float:
    """Return the tokens from which the second layout sends less than the first; infinity where it never does.

    Both send something fixed, their weights, and something for each token.
    """
    fixed_1, slope_1 = _line(first, mesh, hidden_size, part)
    fixed_2, slope_2 = _line(second, mesh, hidden_size, part)
    if slope_2 >= slope_1:
        return float("inf")
    return max(0.0, (fixed_2 - fixed_1) / (slope_1 - slope_2))


def _line(layout: Layout, mesh: Mesh, hidden_size: int, part: Part) -> tuple[float, float]:
    sent = collectives(layout, mesh, 1, hidden_size, part)
    fixed = volume([each for each in sent if each.weights])
    return fixed, volume(sent) - fixed
