"""The course of a recorded tree as the rows of a batch."""

from collections import defaultdict
from collections.abc import Iterator

from prefold.tree.count.segments import Tree


def course(tree: Tree) -> Iterator[list[int]]:
    """Yield, for each step, from which row of the step before each row goes on; the prompt is row 0 before the first.

    These are what ``TreeCache.reorder_cache`` takes: a segment that goes on keeps its row's leaf, one that ends is
    branched from by those that are born, or is pruned.
    """
    born: dict[int, list[int]] = defaultdict(list)
    for segment, above in enumerate(tree.parent.tolist()):
        born[above].append(segment)
    rows, end = [tree.root], tree.end.tolist()
    for step in range(1, tree.steps() + 1):
        going = [
            (row, after)
            for row, segment in enumerate(rows)
            for after in ([segment] if end[segment] >= step else born[segment])
        ]
        rows = [segment for _, segment in going]
        if not rows:
            return
        yield [row for row, _ in going]
