"""A replay that is too slow to be wrong: token by token, query by query."""

from prefold.tree import Tree


def _path(tree: Tree, segment: int) -> list[int]:
    path = []
    while segment >= 0:
        path.append(segment)
        segment = int(tree.parent[segment])
    return path


def _preorder(tree: Tree, segment: int) -> list[int]:
    below = [child for child in range(len(tree.parent)) if tree.parent[child] == segment]
    return [segment, *(each for child in below for each in _preorder(tree, child))]


def _tiles(count: int, size: int) -> int:
    return (count + size - 1) // size


def brute_force(tree: Tree, cap: int | None = None, block: int = 128, tile: int = 32) -> dict[str, list[int]]:
    """Return the columns of ``Counts``, step by step."""
    order = _preorder(tree, tree.root)
    last = {each: max(int(tree.end[below]) for below in _preorder(tree, each)) for each in order}
    steps = max(max(last.values()), 0)
    steps = steps if cap is None else min(steps, cap - 1)
    table = [_step(tree, step, order, last, block, tile) for step in range(1, steps + 1)]
    return {name: [row[name] for row in table] for name in table[0]} if table else {}


def _step(tree: Tree, step: int, order: list[int], last: dict[int, int], block: int, tile: int) -> dict[str, int]:
    held = dict.fromkeys(order, 0)
    for each in order:
        if tree.birth[each] <= step <= last[each]:
            held[each] = int(min(step, tree.end[each]) - tree.birth[each] + 1)
    held[tree.root] = tree.prompt
    queries = [each for each in order if tree.birth[each] <= step <= tree.end[each]]
    below = {each: {query for query in queries if each in _path(tree, query)} for each in order}
    tokens = [each for each in order for _ in range(held[each])]
    blocks = [tokens[first : first + block] for first in range(0, len(tokens), block)]
    in_block = [set().union(*(below[each] for each in set(some))) for some in blocks]
    paths = [sum(held[each] for each in _path(tree, query)) for query in queries]
    filled = [each for each in order if held[each]]
    return {
        "branches": len(queries),
        "tree_tokens": len(tokens),
        "path_tokens": sum(paths),
        "dense_pairs": len(queries) * len(tokens),
        "splits": sum(_tiles(path, block) for path in paths),
        "tiled_tokens": sum(held[each] * _tiles(len(below[each]), tile) for each in filled),
        "node_pairs": sum(len(below[each]) for each in filled),
        "chunk_pairs": sum(len(below[each]) * _tiles(held[each], block) for each in filled),
        "block_tokens": sum(len(b) * _tiles(len(q), tile) for b, q in zip(blocks, in_block, strict=True)),
        "block_pairs": sum(map(len, in_block)),
    }
