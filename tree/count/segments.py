"""A tree of segments: the parent of each, its number of tokens, and the steps at which it is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefold.common.errors import UsageError

Integers = NDArray[np.int64]

# Half a minute and 1.5 GB for 20 branches.
MOST_STEPS = 10_000_000
_ROOT = -1
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree of token segments that decode step by step; steps count from 1. Arrays are ``[segments]``.

    Attributes:
        parent: -1 of the root, which is the prompt.
        tokens: of each segment when it is whole.
        birth: the first step at which it holds a token; that of the root is before the first step.
        end: the last step at which it is decoded: it branches there, or is pruned.
        prompt: tokens that the root holds.
        accepted: tokens that the root gains after each step, as in speculative decoding; empty where it gains none.
    """

    name: str
    parent: Integers
    tokens: Integers
    birth: Integers
    end: Integers
    prompt: int
    accepted: tuple[int, ...] = ()

    @property
    def root(self) -> int:
        """The segment that has no parent."""
        return int(np.flatnonzero(self.parent == _ROOT)[0])

    def steps(self, cap: int | None = None) -> int:
        """Return how many steps are decoded; ``cap``, the longest output, ends them one step before it is reached.

        Raises:
            UsageError: they are too many to be counted one by one.
        """
        last = max(int(self.end.max()), 0)
        steps = last if cap is None else max(min(last, cap - 1), 0)
        if steps > MOST_STEPS:
            raise UsageError(f"{self.name}: {steps:,} steps: at most {MOST_STEPS:,} are counted")
        return steps


def make_tree(
    name: str,
    parent: Sequence[int],
    tokens: Sequence[int],
    birth: Sequence[int],
    end: Sequence[int],
    *,
    prompt: int | None = None,
) -> Tree:
    """Return a tree that has been checked.

    ``birth`` is ``end`` of the parent + 1, or 1 - ``tokens`` of the root, and ``end`` is ``birth + tokens - 1``;
    ``prompt`` is the tokens that the root holds, where ``tokens`` has others.

    Raises:
        UsageError: it is not one tree, or its arrays contradict each other.
    """
    if not len(parent) == len(tokens) == len(birth) == len(end) > 0:
        lengths = ", ".join(str(len(each)) for each in (parent, tokens, birth, end))
        raise UsageError(f"{name}: parent, tokens, birth and end are of one length above 0, not {lengths}")
    columns = [np.array(each, np.int64) for each in (parent, tokens, birth, end)]
    root = _root_of(name, columns[0])
    _check_counts(name, columns[1], prompt)
    _check_connected(name, columns[0], root)
    _check_times(name, columns, root)
    return Tree(name, columns[0], columns[1], columns[2], columns[3], int(tokens[root]) if prompt is None else prompt)


def _listed(segments: Integers) -> str:
    named = ", ".join(map(str, segments[:_NAMED].tolist()))
    return f"segment{'s' if len(segments) > 1 else ''} {named}{' and others' if len(segments) > _NAMED else ''}"


def _refuse(name: str, wrong: NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        raise UsageError(f"{name}: {_listed(np.flatnonzero(wrong))}: {why}")


def _root_of(name: str, parent: Integers) -> int:
    _refuse(name, (parent < _ROOT) | (parent >= len(parent)), "the parent is no segment of this tree")
    roots = np.flatnonzero(parent == _ROOT)
    if len(roots) > 1:
        raise UsageError(f"{name}: {len(roots)} roots ({_listed(roots)}); a tree has one, whose parent is -1")
    if len(roots) == 0:
        raise UsageError(f"{name}: a cycle, no segment is the root, whose parent is -1")
    return int(roots[0])


def _check_counts(name: str, tokens: Integers, prompt: int | None) -> None:
    _refuse(name, tokens < 0, "a negative number of tokens")
    if prompt is not None and prompt < 0:
        raise UsageError(f"{name}: a prompt of {prompt} tokens")


def _check_connected(name: str, parent: Integers, root: int) -> None:
    """Refuse segments that no walk from the root reaches: with one parent each, they lead to a cycle."""
    above = np.where(parent == _ROOT, root, parent)
    for _ in range(len(parent).bit_length()):
        above = above[above]  # twice as far up each time
    _refuse(name, above != root, "a cycle, the parents never lead to the root")


def _check_times(name: str, columns: list[Integers], root: int) -> None:
    parent, tokens, birth, end = columns
    born = end[parent] + 1
    born[root] = 1 - tokens[root]
    _refuse(name, birth != born, "birth is not the parent's end + 1 (1 - tokens of the root)")
    _refuse(name, end != birth + tokens - 1, "end is not birth + tokens - 1")


def depth_first(tree: Tree) -> tuple[Integers, Integers]:
    """Return the segments depth first, children by number, and the size of the subtree of each."""
    children: list[list[int]] = [[] for _ in tree.parent]
    for segment, parent in enumerate(tree.parent.tolist()):
        if parent != _ROOT:
            children[parent].append(segment)
    order, waiting = [], [tree.root]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(reversed(children[order[-1]]))
    sizes = [1] * len(order)
    for segment in reversed(order[1:]):
        sizes[tree.parent[segment]] += sizes[segment]
    return np.array(order, np.int64), np.array(sizes, np.int64)[order]
