"""The columns of a tree depth first, and as much of them as some of its steps need."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefold.tree.count.segments import Integers, Tree, depth_first

BLOCK = 128


@dataclass(frozen=True, eq=False)
class Ordered:
    """A tree's columns, depth first; the root is the first.

    Attributes:
        last: the last step at which a segment or one below it is decoded.
        before: tokens of all segments above.
        above: the nearest of these that holds a token; -1 without one.
        sizes: segments of each subtree.
        segments: that an entry stands for: several where a chain of them is one.
        blocks: of each of these segments when it is whole.
        block: tokens of a block.
        joins: chains become one entry.
    """

    birth: Integers
    end: Integers
    last: Integers
    tokens: Integers
    before: Integers
    above: Integers
    sizes: Integers
    segments: Integers
    blocks: Integers
    block: int
    joins: bool = True

    def within(self, first: int, last: int) -> "Ordered":
        """Return what is resident between two steps; chains in which nothing changes are one segment.

        Their segments are whole, outlive these steps and have the same branches below them. The root stands alone.
        """
        kept = (self.birth <= last) & (self.last >= first) & (self.tokens > 0)
        kept[0] = True
        at, count = np.flatnonzero(kept), _counted(kept)
        sizes = count[at + self.sizes[at]] - count[at]
        above = np.where(self.above[at] >= 0, count[self.above[at]], -1)
        still = (self.end[at] < first) & (self.last[at] >= last)
        joins = np.zeros(len(at), np.bool_)
        joins[2:] = still[1:-1] & still[2:] & (above[2:] == np.arange(1, len(at) - 1)) & (sizes[1:-1] == sizes[2:] + 1)
        joins &= self.joins
        if joins.any() or len(at) < len(kept):
            return self._joined(at, np.flatnonzero(~joins), sizes, above)
        return self

    def _joined(self, at: Integers, heads: Integers, sizes: Integers, above: Integers) -> "Ordered":
        """Return those ``at`` some places; each of ``heads``, places among these, is one with all up to the next."""
        head = np.zeros(len(at), np.bool_)
        head[heads] = True
        count = _counted(head)
        top, tail = at[heads], at[np.append(heads[1:], len(at)) - 1]
        return Ordered(
            birth=self.birth[top],
            end=self.end[tail],
            last=self.last[tail],
            tokens=np.add.reduceat(self.tokens[at], heads),
            before=self.before[top],
            above=np.where(above[heads] >= 0, count[above[heads] + 1] - 1, -1),
            sizes=count[heads + sizes[heads]] - count[heads],
            segments=np.add.reduceat(self.segments[at], heads),
            blocks=np.add.reduceat(self.blocks[at], heads),
            block=self.block,
            joins=self.joins,
        )


def _counted(kept: NDArray[np.bool_]) -> Integers:
    """Return how many are kept before each place, and before the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])


def order_tree(tree: Tree, block: int = BLOCK, *, joins: bool = True) -> Ordered:
    """Return the columns of a whole tree; ``block`` tokens are a block, and ``joins`` makes one entry of a chain."""
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
    ones, blocks = np.ones_like(order), -(-made[1] // block)
    return Ordered(tree.birth[order], end, made[0], made[1], made[2], made[3], sizes, ones, blocks, block, joins)
