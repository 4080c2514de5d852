"""The bytes that a tree's attention reads and writes, scheme by scheme, over all layers and steps.

DeFT, arXiv 2404.00242. Each step of a replay is counted in tokens, from which bytes follow by the sizes of a model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

import numpy as np

from prefold.common.errors import UnknownName
from prefold.tree.count.segments import Integers, Tree
from prefold.tree.count.timeline import Rows, replay
from prefold.tree.count.windows import within_window

TILE = 32
_PARTIAL = 4  # bytes of a value of a partial output, which are fp32


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


def count_rows(parts: Iterable[Rows], *, tile: int = TILE) -> Counts:
    """Return the counts of each step; ``tile`` queries share a read of a block."""
    counted = [_counted(rows, tile) for rows in parts]
    names = [each.name for each in fields(Counts)]
    none = np.zeros(0, np.int64)
    return Counts(*(np.concatenate([none, *(part[name] for part in counted)]) for name in names))


def _counted(rows: Rows, tile: int) -> dict[str, Integers]:
    def by_step(column: Integers) -> Integers:
        return np.add.reduceat(column, rows.starts)

    tree_tokens = by_step(rows.tokens)
    blocks = _Blocks(rows, tree_tokens)
    wide = bool((rows.live > tile).any())  # else every tile holds all queries
    return {
        "branches": rows.live,
        "tree_tokens": tree_tokens,
        "path_tokens": by_step(rows.paths),
        "dense_pairs": rows.live * tree_tokens,
        "splits": by_step(-(-rows.paths // rows.block)),
        "tiled_tokens": by_step(rows.tokens * -(-rows.branches // tile)) if wide else tree_tokens,
        "node_pairs": by_step(rows.branches * rows.segments),
        "chunk_pairs": by_step(rows.branches * rows.blocks),
        "block_tokens": blocks.launched(tile) if wide else tree_tokens,
        "block_pairs": blocks.pairs(),
    }


class _Blocks:
    def __init__(self, rows: Rows, tree_tokens: Integers) -> None:
        self._rows, self._tree_tokens, self._block = rows, tree_tokens, rows.block
        sizes = np.diff(np.append(rows.starts, len(rows.tokens)))
        self._steps = np.repeat(np.arange(len(sizes)), sizes)
        ends = np.cumsum(rows.tokens) - (np.cumsum(tree_tokens) - tree_tokens)[self._steps]
        self._first, self._last = (ends - rows.tokens) // self._block, (ends - 1) // self._block
        # A path lies in rising blocks. It may enter a segment in the block in which it left the segment above.
        self._shared = (rows.above >= 0) & (self._first == self._last[rows.above])

    def pairs(self) -> Integers:
        entered = self._last - self._first + ~self._shared
        return np.add.reduceat(self._rows.branches * entered, self._rows.starts)

    def launched(self, tile: int) -> Integers:
        """Return tokens that are read when each block is, once for each ``tile`` of its queries.

        Between two blocks at which a segment is entered or left the queries are the same.
        """
        steps, branches = np.tile(self._steps, 2), self._rows.branches
        blocks = np.concatenate([self._first + self._shared, self._last + 1])
        order = np.lexsort((blocks, steps))
        steps, places = steps[order], blocks[order] * self._block
        queries = np.cumsum(np.concatenate([branches, -branches])[order])
        places = np.minimum(places, self._tree_tokens[steps])
        tokens = np.append(places[1:], 0) - places
        return np.add.reduceat(tokens * -(-queries // tile), 2 * self._rows.starts)


@dataclass(frozen=True)
class Attention:
    """The attention of a model: H ``heads`` of queries, and values of d, ``head_dim``, of so many bytes.

    Attributes:
        value_bytes: of a query, a key, a value or an output; the paper's are fp16.
        sliding_layers: of the layers, those that attend to the last ``sliding_window`` tokens alone.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int = 2
    sliding_layers: int = 0
    sliding_window: int = 0

    def kv_bytes(self, heads: int) -> int:
        """Return bytes of the keys and values of one token, of so many heads of each layer."""
        return 2 * self.layers * heads * self.head_dim * self.value_bytes


@dataclass(frozen=True)
class Reads:
    """Bytes of one scheme, over all layers and steps.

    Attributes:
        published: keys and values, counted per query head as DeFT does.
        published_partials: what DeFT counts beside them: Medusa's scores without those of QK^T, Flatten's mask.
        physical: the same reads of keys and values, per head of keys and values.
        kv: keys and values as launched: read again for each tile of queries.
        queries: read once for each pair of a query and a group.
        outputs: written once.
        partials: partial outputs and their log-sum-exp, written and read in fp32.
        masks: masks, and scores that are written and read where they are.
    """

    published: Fraction
    published_partials: Fraction
    physical: Fraction
    kv: Fraction
    queries: Fraction
    outputs: Fraction
    partials: Fraction
    masks: Fraction

    @property
    def full(self) -> Fraction:
        """All bytes that are read and written."""
        return self.kv + self.queries + self.outputs + self.partials + self.masks


@dataclass(frozen=True, eq=False)
class Counted:
    """The counts of some trees at each step, and the tokens that they generate; figures are exact means per tree.

    ``windows`` are the counts of layers with a sliding window; empty without such layers.
    """

    attention: Attention
    trees: tuple[Counts, ...]
    generated: int
    schemes: tuple[Scheme, ...]
    windows: tuple[Counts, ...] = ()

    @property
    def totals(self) -> dict[str, Fraction]:
        """The columns of ``Counts``, over all steps, and the number of ``steps``: means per tree."""
        return _means(self.trees)

    @property
    def generated_tokens(self) -> Fraction:
        """Tokens that a tree generates."""
        return Fraction(self.generated, len(self.trees))

    @property
    def sharing_factor(self) -> float | None:
        """F in the paper: tokens of all paths to tokens of the tree; None where no step is decoded."""
        totals = self.totals
        return float(totals["path_tokens"] / totals["tree_tokens"]) if totals["tree_tokens"] else None

    @property
    def reads(self) -> dict[str, Reads]:
        """The bytes of each scheme, means per tree."""
        parts = [(attention, _means(trees)) for attention, trees in self.parts]
        return {scheme.name: _sum([reads_of(scheme, *part) for part in parts]) for scheme in self.schemes}

    @property
    def parts(self) -> list[tuple[Attention, tuple[Counts, ...]]]:
        """Layers that see all tokens, and those with a window, each with their counts."""
        sliding = self.attention.sliding_layers if self.windows else 0
        whole = replace(self.attention, layers=self.attention.layers - sliding)
        windows = [(replace(self.attention, layers=sliding), self.windows)] if sliding else []
        return [(whole, self.trees), *windows]


def _means(trees: Sequence[Counts]) -> dict[str, Fraction]:
    sums = [{**each.totals(), "steps": len(each.branches)} for each in trees]
    return {name: Fraction(sum(each[name] for each in sums), len(sums)) for name in sums[0]}


def _sum(parts: Sequence[Reads]) -> Reads:
    return Reads(*(sum((getattr(part, each.name) for part in parts), Fraction(0)) for each in fields(Reads)))


def count_trees(
    trees: Sequence[Tree], attention: Attention, *, schemes: Sequence[str] = (), cap: int | None = None
) -> Counted:
    """Return what schemes read of one or more trees, step by step; ``UnknownName`` for an unknown scheme.

    ``schemes`` are names of ``SCHEMES``, all if none is given; ``cap`` is the longest output, in tokens, and the last
    step is one before it.
    """
    found = tuple(find_schemes(schemes))
    counts = tuple(count_rows(replay(tree, cap)) for tree in trees)
    generated = sum(_generated(tree, tree.steps(cap)) for tree in trees)
    window = attention.sliding_window if attention.sliding_layers else 0
    windows = tuple(count_rows(_seen(tree, cap, window)) for tree in trees) if window else ()
    return Counted(attention, counts, generated, found, windows)


def _seen(tree: Tree, cap: int | None, window: int) -> Iterator[Rows]:
    return (within_window(rows, window) for rows in replay(tree, cap, joins=False))


def _generated(tree: Tree, steps: int) -> int:
    """Return tokens of a tree beside its prompt, with those that the last step has yet to append."""
    held = (tree.end.clip(max=steps + 1) - tree.birth.clip(min=1) + 1).clip(0, tree.tokens)
    held[tree.root] = sum(tree.accepted[:steps])
    return int(held.sum())


def reads_of(scheme: Scheme, attention: Attention, totals: dict[str, Fraction]) -> Reads:
    """Return the bytes of a scheme from sums over steps of the columns of ``Counts`` (the paper's IO table)."""
    layers, heads = attention.layers, attention.heads
    per_query = layers * heads * attention.head_dim * attention.value_bytes
    physical = attention.kv_bytes(attention.kv_heads)
    pairs, mask = totals[scheme.pairs], layers * scheme.mask * totals["tree_tokens"]
    dense = dense_parts(attention, totals) if scheme.dense else {}
    return Reads(
        published=attention.kv_bytes(heads) * totals[scheme.kv],
        published_partials=mask + sum(size for part, size in dense.items() if part != "qk"),
        physical=physical * totals[scheme.kv],
        kv=physical * totals[scheme.launched],
        queries=per_query * pairs,
        outputs=per_query * totals["branches"],
        partials=2 * _PARTIAL * layers * heads * (attention.head_dim + 1) * pairs,
        masks=mask + sum(dense.values()),
    )


def dense_parts(attention: Attention, totals: dict[str, Fraction]) -> dict[str, Fraction]:
    """Return the bytes that a dense mask costs, as DeFT logs them: scores of every query by every token.

    QK^T, its scaling and its masking write and read a score each, the softmax two; all heads share one mask.
    """
    score = attention.layers * attention.value_bytes * totals["dense_pairs"]
    heads = attention.heads
    once = dict.fromkeys(("qk", "scaled", "masked"), 2 * heads * score)
    return {**once, "softmax": 4 * heads * score, "mask": score}
