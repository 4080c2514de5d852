"""The replay of a tree: the segments that are resident at each step, and their tokens.

Between two steps at which a segment is born or ends, the same segments are resident and the same branches lie below
each. So these are found once for each such interval, and only the numbers of tokens are written out step by step. Of a
few intervals alone, a chain of segments in which nothing changes is one: a long path costs no more than what changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefold.tree.count.ordered import BLOCK, Ordered, order_tree
from prefold.tree.count.segments import Integers, Tree

_ROWS = 1 << 17  # written out at a time: few enough for a processor's cache
_CELLS = 1 << 15  # steps times segments from which on half as many steps are looked at by themselves


@dataclass(frozen=True, eq=False)
class Rows:
    """The segments that are resident at some steps in a row: one row for each of a step, depth first.

    A row may stand for a chain of segments that are whole and have the same branches below them.

    Attributes:
        starts: the first row of each step.
        tokens: that the segment holds.
        branches: that are decoded at this step and lie on the segment or below it.
        above: the row of the segment that it continues; -1 of the first of a step.
        paths: tokens from the root to here where a branch is decoded, and else 0.
        live: branches that are decoded at each step.
        segments: that the row stands for.
        blocks: of each of these segments, by itself.
        block: tokens of a block.
    """

    starts: Integers
    tokens: Integers
    branches: Integers
    above: Integers
    paths: Integers
    live: Integers
    segments: Integers
    blocks: Integers
    block: int


@dataclass(frozen=True, eq=False)
class _Pattern:
    """The resident segments of some intervals, one after the other; columns are ``[intervals]`` or ``[cells]``."""

    sizes: Integers
    live: Integers
    segment: Integers
    branches: Integers
    above: Integers
    decoded: NDArray[np.bool_]


def replay(tree: Tree, cap: int | None = None, *, block: int = BLOCK, joins: bool = True) -> Iterator[Rows]:
    """Yield the resident segments from step 1 to the last, some steps at a time; ``cap`` as in ``Tree.steps``.

    ``joins``: a row may stand for a chain.
    """
    steps = tree.steps(cap)
    ordered = order_tree(tree, block, joins=joins)
    gained = np.zeros(steps, np.int64)
    gained[1:] = np.cumsum(tree.accepted)[: max(steps - 1, 0)] if tree.accepted else 0
    events = np.concatenate([ordered.birth, ordered.end + 1, ordered.last + 1, [1]])
    begins = np.unique(events[(events >= 1) & (events <= steps)])
    if steps:
        yield from _halved(ordered, np.append(begins, steps + 1), gained)


def _halved(ordered: Ordered, begins: Integers, gained: Integers) -> Iterator[Rows]:
    """Yield rows for intervals, those of many cells in halves; ``begins`` ends with the step after the last."""
    within = ordered.within(int(begins[0]), int(begins[-1]) - 1)
    half = (len(begins) - 1) // 2
    if half and int(begins[-1] - begins[0]) * len(within.birth) > _CELLS:
        yield from _halved(within, begins[: half + 1], gained)
        yield from _halved(within, begins[half:], gained)
    else:
        yield from _written_out(within, _pattern(within, begins[:-1]), begins, gained)


def _pattern(ordered: Ordered, steps: Integers) -> _Pattern:
    at = steps[:, None]
    resident = (ordered.birth <= at) & (at <= ordered.last) & (ordered.tokens > 0)
    decoded = resident & (at <= ordered.end)
    below = np.zeros((len(steps), len(ordered.birth) + 1), np.int64)
    np.cumsum(decoded, axis=1, out=below[:, 1:])
    local = np.cumsum(resident, axis=1) - 1
    interval, segment = np.nonzero(resident)
    branches = below[interval, segment + ordered.sizes[segment]] - below[interval, segment]
    above = np.where(ordered.above[segment] >= 0, local[interval, ordered.above[segment]], -1)
    return _Pattern(resident.sum(1), below[:, -1], segment, branches, above, decoded[interval, segment])


def _written_out(ordered: Ordered, pattern: _Pattern, begins: Integers, gained: Integers) -> Iterator[Rows]:
    """Yield rows for the steps of each interval; ``begins`` ends with the step after the last."""
    intervals = np.repeat(np.arange(len(pattern.sizes)), np.diff(begins))
    ends = np.cumsum(pattern.sizes[intervals])
    first = 0
    while first < len(intervals):
        done = ends[first - 1] if first else 0
        beyond = max(int(np.searchsorted(ends, done + _ROWS, side="right")), first + 1)
        yield _rows(ordered, pattern, intervals[first:beyond], begins[0] + np.arange(first, beyond), gained)
        first = beyond


def _rows(ordered: Ordered, pattern: _Pattern, intervals: Integers, steps: Integers, gained: Integers) -> Rows:
    sizes = pattern.sizes[intervals]
    starts = np.cumsum(sizes) - sizes
    origin = (np.cumsum(pattern.sizes) - pattern.sizes)[intervals]
    cells = np.arange(starts[-1] + sizes[-1]) + np.repeat(origin - starts, sizes)
    segments = pattern.segment[cells]
    tokens = np.minimum(np.repeat(steps + 1, sizes) - ordered.birth[segments], ordered.tokens[segments])
    more = np.repeat(gained[steps - 1], sizes)
    tokens = np.where(segments == 0, ordered.tokens[0] + more, tokens)
    joined = ordered.segments[segments]
    blocks = np.where(joined > 1, ordered.blocks[segments], -(-tokens // ordered.block))
    paths = np.where(pattern.decoded[cells], ordered.before[segments] + more + tokens, 0)
    above = pattern.above[cells]
    above = np.where(above >= 0, above + np.repeat(starts, sizes), -1)
    branches, live = pattern.branches[cells], pattern.live[intervals]
    return Rows(starts, tokens, branches, above, paths, live, joined, blocks, ordered.block)
