"""Trees of several levels as stretches of one pool: the shapes of FastTree's benchmark (arXiv 2502.20964)."""

from prefold.tree.cache.blocks import SlotRange

# Nodes and tokens of each level: run_benchmark.sh of FastTree's artifact.
FORESTS = [
    ([1, 2, 64], [8, 256, 32]),
    ([1, 4, 8, 256], [8, 256, 256, 32]),
    ([1, 256], [256, 32]),
    ([1, 1024], [2048, 32]),
    ([1, 16, 64], [1024, 256, 32]),
    ([1, 4, 16, 512], [1024, 256, 128, 32]),
    ([1, 10], [4000, 400]),
    ([1, 2, 4, 8, 16, 32, 64, 128, 1024], [256, 128, 64, 16, 16, 16, 16, 16, 16]),
]


def forest(nodes: list[int], tokens: list[int]) -> list[SlotRange]:
    """Return where the tokens lie: child ``j`` of a level hangs under parent ``j * parents // nodes``.

    A leaf is a query.
    """
    leaves, slot, position, found = nodes[-1], 0, 0, []
    for count, length in zip(nodes, tokens, strict=True):
        for node in range(count):
            low, high = (-(-leaves * at // count) for at in (node, node + 1))
            found.append(SlotRange(slot, length, low, high, position))
            slot += length
        position += length
    return found


def path_tokens(nodes: list[int], tokens: list[int]) -> int:
    """Return the tokens that the leaves' paths have, those that are shared counted for each."""
    return nodes[-1] * sum(tokens)
