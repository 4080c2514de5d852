"""The tokens that each scheme of attention reads at a step of a replay (DeFT, arXiv 2404.00242)."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from prefold.common.errors import UnknownName
from prefold.tree.count.segments import Integers
from prefold.tree.count.timeline import Rows

BLOCK, TILE = 128, 32


@dataclass(frozen=True)
class Scheme:
    """A way to read the KV cache, by columns of ``Counts``.

    Attributes:
        kv: tokens whose keys and values are read, as published.
        launched: tokens that are read in truth.
        pairs: of a query and a group of keys.
        mask: bytes of a mask for each token of the tree.
        dense: scores and a mask of every query by every token are written and read.
    """

    name: str
    kv: str
    launched: str
    pairs: str
    mask: int = 0
    dense: bool = False


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("sequence-wise", "path_tokens", "path_tokens", "splits"),
        Scheme("medusa", "tree_tokens", "tree_tokens", "branches", dense=True),
        Scheme("node", "tiled_tokens", "tiled_tokens", "node_pairs"),
        Scheme("node-chunk", "tiled_tokens", "tiled_tokens", "chunk_pairs"),
        Scheme("flatten", "tree_tokens", "block_tokens", "block_pairs", mask=8),
    )
}
_ALSO = {"flash-decoding": "sequence-wise", "radix": "sequence-wise", "tree-attention": "medusa"}


def find_schemes(names: Iterable[str] = ()) -> list[Scheme]:
    """Return schemes by name, all where none is named; ``UnknownName`` has the nearest names."""
    chosen = [name.lower().replace("_", "-").removeprefix("deft-") for name in names]
    chosen = [_ALSO.get(name, name) for name in chosen]
    for name in chosen:
        if name not in SCHEMES:
            raise UnknownName("scheme", name, [*SCHEMES, *_ALSO])
    return [scheme for name, scheme in SCHEMES.items() if name in chosen or not chosen]


@dataclass(frozen=True, eq=False)
class Counts:
    """Tokens, or pairs of a query and a group, that are read at each step: arrays ``[steps]``.

    Attributes:
        branches: that are decoded, l in the paper.
        tree_tokens: of all resident segments.
        path_tokens: of the paths of all branches.
        dense_pairs: branches times tokens of the tree.
        splits: blocks of the path of each branch.
        tiled_tokens: of each segment, once for each tile of queries.
        node_pairs: branches below each segment.
        chunk_pairs: branches below each segment, times its blocks.
        block_tokens: of each block of the flattened tree, once for each tile of queries.
        block_pairs: branches of each block of the flattened tree.
    """

    branches: Integers
    tree_tokens: Integers
    path_tokens: Integers
    dense_pairs: Integers
    splits: Integers
    tiled_tokens: Integers
    node_pairs: Integers
    chunk_pairs: Integers
    block_tokens: Integers
    block_pairs: Integers

    def totals(self) -> dict[str, int]:
        """Return each column's sum over all steps."""
        return {each.name: int(getattr(self, each.name).sum()) for each in fields(self)}


def count_rows(parts: Iterable[Rows], *, block: int = BLOCK, tile: int = TILE) -> Counts:
    """Return the counts of each step; ``block`` tokens are a group, ``tile`` queries share a read of it."""
    counted = [_counted(rows, block, tile) for rows in parts]
    names = [each.name for each in fields(Counts)]
    none = np.zeros(0, np.int64)
    return Counts(*(np.concatenate([none, *(part[name] for part in counted)]) for name in names))


def _counted(rows: Rows, block: int, tile: int) -> dict[str, Integers]:
    def by_step(column: Integers) -> Integers:
        return np.add.reduceat(column, rows.starts)

    tree_tokens = by_step(rows.tokens)
    blocks = _Blocks(rows, tree_tokens, block)
    wide = bool((rows.live > tile).any())  # else every tile holds all queries
    return {
        "branches": rows.live,
        "tree_tokens": tree_tokens,
        "path_tokens": by_step(rows.paths),
        "dense_pairs": rows.live * tree_tokens,
        "splits": by_step(-(-rows.paths // block)),
        "tiled_tokens": by_step(rows.tokens * -(-rows.branches // tile)) if wide else tree_tokens,
        "node_pairs": by_step(rows.branches),
        "chunk_pairs": by_step(rows.branches * -(-rows.tokens // block)),
        "block_tokens": blocks.launched(tile) if wide else tree_tokens,
        "block_pairs": blocks.pairs(),
    }


class _Blocks:
    def __init__(self, rows: Rows, tree_tokens: Integers, block: int) -> None:
        self._rows, self._tree_tokens, self._block = rows, tree_tokens, block
        sizes = np.diff(np.append(rows.starts, len(rows.tokens)))
        self._steps = np.repeat(np.arange(len(sizes)), sizes)
        ends = np.cumsum(rows.tokens) - (np.cumsum(tree_tokens) - tree_tokens)[self._steps]
        self._first, self._last = (ends - rows.tokens) // block, (ends - 1) // block
        # A path lies in rising blocks. It may enter a segment in the block in which it left the segment above.
        self._shared = (rows.above >= 0) & (self._first == self._last[rows.above])

    def pairs(self) -> Integers:
        entered = self._last - self._first + ~self._shared
        return np.add.reduceat(self._rows.branches * entered, self._rows.starts)

    def launched(self, tile: int) -> Integers:
        """Return tokens that are read when each block is, once for each ``tile`` of its queries."""
        counts = -(-self._tree_tokens // self._block)
        starts, total = np.cumsum(counts + 1) - counts - 1, int((counts + 1).sum())
        origin, branches = starts[self._steps], self._rows.branches.astype(np.float64)
        enters = np.bincount(origin + self._first + self._shared, branches, total)
        leaves = np.bincount(origin + self._last + 1, branches, total)
        queries = np.cumsum(np.rint(enters - leaves).astype(np.int64))
        lengths = np.full(total, self._block)
        lengths[starts + counts - 1] = self._tree_tokens - (counts - 1) * self._block
        lengths[starts + counts] = 0
        return np.add.reduceat(lengths * -(-queries // tile), starts)
