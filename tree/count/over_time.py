"""The reads of each step, as means over trees, for pictures."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from prefold.tree.count.reads import Counted, reads_of

Series = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OverTime:
    """Means over all trees at each step; a tree that has ended adds nothing. Arrays are ``[steps]``, from step 1.

    ``reads`` are bytes that each scheme reads and writes, the full column, over all layers.
    """

    branches: Series
    tree_tokens: Series
    path_tokens: Series
    reads: dict[str, Series]


def over_time(counted: Counted) -> OverTime:
    """Return the reads of each step."""
    steps = max(len(each.branches) for each in counted.trees)
    names = counted.trees[0].totals()
    means = {name: _mean([getattr(each, name) for each in counted.trees], steps) for name in names}
    reads = {}
    for scheme in counted.schemes:
        # Bytes are a sum of columns, each by a constant; what one of each column costs is that constant.
        costs = {name: float(reads_of(scheme, counted.attention, _one(name, list(names))).full) for name in names}
        reads[scheme.name] = np.sum([costs[name] * means[name] for name in names], axis=0)
    return OverTime(means["branches"], means["tree_tokens"], means["path_tokens"], reads)


def _one(chosen: str, names: list[str]) -> dict[str, Fraction]:
    return {name: Fraction(name == chosen) for name in names}


def _mean(columns: list[NDArray[np.int64]], steps: int) -> Series:
    total = np.zeros(steps)
    for column in columns:
        total[: len(column)] += column
    return total / len(columns)
