"""The replay of a tree: the segments that are resident at each step, and their tokens.

Between two steps at which a segment is born or ends, the same segments are resident and the same branches lie below
each. So these are found once for each such interval, and only the numbers of tokens are written out step by step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefold.tree.count.segments import Integers, Tree, depth_first

_ROWS, _CELLS = 1 << 17, 1 << 20  # written out at a time: few enough for a processor's cache


@dataclass(frozen=True, eq=False)
class Rows:
    """The segments that are resident at some steps in a row: one row for each of a step, depth first.

    Attributes:
        starts: the first row of each step.
        tokens: that the segment holds.
        branches: that are decoded at this step and lie on the segment or below it.
        above: the row of the segment that it continues; -1 of the first of a step.
        paths: tokens from the root to here where a branch is decoded, and else 0.
        live: branches that are decoded at each step.
    """

    starts: Integers
    tokens: Integers
    branches: Integers
    above: Integers
    paths: Integers
    live: Integers


@dataclass(frozen=True, eq=False)
class _Pattern:
    """The resident segments of some intervals, one after the other; columns are ``[intervals]`` or ``[cells]``."""

    sizes: Integers
    live: Integers
    segment: Integers
    branches: Integers
    above: Integers
    decoded: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Ordered:
    """A tree's columns, depth first.

    ``last`` is the last step at which a segment or one below it is decoded, ``before`` tokens of all segments above,
    ``above`` the nearest of these that holds a token, -1 without one, and ``sizes`` the segments of each subtree.
    """

    birth: Integers
    end: Integers
    last: Integers
    tokens: Integers
    before: Integers
    above: Integers
    sizes: Integers


def _ordered(tree: Tree) -> _Ordered:
    order, sizes = depth_first(tree)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    parents, end = place[tree.parent[order]].tolist(), tree.end[order]
    tokens = [tree.prompt, *tree.tokens[order[1:]].tolist()]
    last, before, above = end.tolist(), [0] * len(order), [-1] * len(order)
    for segment in range(1, len(order)):
        parent = parents[segment]
        before[segment] = before[parent] + tokens[parent]
        above[segment] = parent if tokens[parent] else above[parent]
    for segment in range(len(order) - 1, 0, -1):
        last[parents[segment]] = max(last[parents[segment]], last[segment])
    made = [np.array(each, np.int64) for each in (last, tokens, before, above)]
    return _Ordered(tree.birth[order], end, made[0], made[1], made[2], made[3], sizes)


def replay(tree: Tree, cap: int | None = None) -> Iterator[Rows]:
    """Yield the resident segments from step 1 to the last, some steps at a time; ``cap`` as in ``Tree.steps``."""
    steps = tree.steps(cap)
    ordered = _ordered(tree)
    gained = np.zeros(steps, np.int64)
    gained[1:] = np.cumsum(tree.accepted)[: max(steps - 1, 0)] if tree.accepted else 0
    events = np.concatenate([ordered.birth, ordered.end + 1, ordered.last + 1, [1]])
    begins = np.unique(events[(events >= 1) & (events <= steps)])
    width = max(_CELLS // len(tree.parent), 1)
    for first in range(0, len(begins), width):
        chosen = begins[first : first + width]
        until = begins[first + width] if first + width < len(begins) else steps + 1
        yield from _written_out(ordered, _pattern(ordered, chosen), np.append(chosen, until), gained)


def _pattern(ordered: _Ordered, steps: Integers) -> _Pattern:
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


def _written_out(ordered: _Ordered, pattern: _Pattern, begins: Integers, gained: Integers) -> Iterator[Rows]:
    """Yield rows for the steps of each interval; ``begins`` ends with the step after the last."""
    intervals = np.repeat(np.arange(len(pattern.sizes)), np.diff(begins))
    ends = np.cumsum(pattern.sizes[intervals])
    first = 0
    while first < len(intervals):
        done = ends[first - 1] if first else 0
        beyond = max(int(np.searchsorted(ends, done + _ROWS, side="right")), first + 1)
        yield _rows(ordered, pattern, intervals[first:beyond], begins[0] + np.arange(first, beyond), gained)
        first = beyond


def _rows(ordered: _Ordered, pattern: _Pattern, intervals: Integers, steps: Integers, gained: Integers) -> Rows:
    sizes = pattern.sizes[intervals]
    starts = np.cumsum(sizes) - sizes
    origin = (np.cumsum(pattern.sizes) - pattern.sizes)[intervals]
    cells = np.arange(starts[-1] + sizes[-1]) + np.repeat(origin - starts, sizes)
    segments = pattern.segment[cells]
    tokens = np.minimum(np.repeat(steps + 1, sizes) - ordered.birth[segments], ordered.tokens[segments])
    more = np.repeat(gained[steps - 1], sizes)
    tokens = np.where(segments == 0, ordered.tokens[0] + more, tokens)
    paths = np.where(pattern.decoded[cells], ordered.before[segments] + more + tokens, 0)
    above = pattern.above[cells]
    above = np.where(above >= 0, above + np.repeat(starts, sizes), -1)
    return Rows(starts, tokens, pattern.branches[cells], above, paths, pattern.live[intervals])
