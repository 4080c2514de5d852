"""A flattened tree cut into even blocks, as kernels read it (DeFT-Flatten).

Segments lie one after the other, depth first, and a block may begin and end within one. A block carries the union of
its queries, in tiles of so many, and for each tile a mask of 64 bits for every token: bit ``i`` is set if the tile's
query ``i`` has the token on its path. Tokens that lie in several pools are flattened pool by pool.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]

BLOCK, TILE, BITS = 128, 32, 64
_POOL = 5  # the column of a range
# 0 to 64 bits that are set, from the lowest on.
_ONES = np.array([(1 << count) - 1 for count in range(BITS + 1)], np.uint64)


class SlotRange(NamedTuple):
    """Consecutive slots of a pool that hold tokens of one segment, in order, and the queries that see them.

    Queries are in depth-first order of where they end, so that those below a segment are consecutive.

    Attributes:
        slot: of the first token.
        low: the first query that has the segment on its path.
        high: the query behind the last; a range that no query sees is left out, and never read.
        position: tokens before the first on its path.
    """

    slot: int
    tokens: int
    low: int
    high: int
    position: int = 0
    pool: int = 0


class Pool(NamedTuple):
    """The items of a pool, ``[begin, end)``, and the slot behind the last that they read."""

    name: int
    begin: int
    end: int
    stop: int


class Tiles(NamedTuple):
    """A block's tiles of queries, in the order of the blocks: arrays ``[tiles]``.

    A tile reads tokens from ``begin`` up to ``end``, counted over the flattened tree; ``mask`` and ``pair`` are offsets
    of the masks of these and of its queries in ``Blocks.queries``, and ``queries`` their number.
    """

    begin: Integers
    end: Integers
    mask: Integers
    pair: Integers
    queries: Integers


@dataclass(frozen=True, eq=False)
class Blocks:
    """What one step of decoding attends to; tensors are int64, on one device.

    Attributes:
        slots: of every token of the flattened tree, ``[tokens]``.
        positions: of every token on its path, ``[tokens]``.
        masks: of every token that an item reads, item after item.
        queries: of every block, in rising order, ``[pairs]``.
        items: the columns of :class:`Tiles`, ``[items, 5]``.
        order: the pairs of every query, query after query, in the order of the blocks, ``[pairs]``.
        offsets: of those of a query, ``[number + 1]``.
        number: of queries.
        most: queries of an item, at most.
        pools: in the order of their items.
        read: tokens that all items read: those of a block once for each of its tiles, as far as these see them.
        ranges: of which it is made, ``[ranges, 6]``, without those that no query sees; on the CPU.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    masks: torch.Tensor
    queries: torch.Tensor
    items: torch.Tensor
    order: torch.Tensor
    offsets: torch.Tensor
    number: int
    most: int
    pools: tuple[Pool, ...]
    read: int
    ranges: Integers


def make_blocks(
    ranges: Iterable[SlotRange],
    queries: int,
    *,
    size: int = BLOCK,
    tile: int = TILE,
    device: torch.device | str = "cpu",
) -> Blocks:
    """Cut a tree into blocks of ``size`` tokens, the last one of fewer, and tiles of at most 64 queries.

    ``ranges`` are the tokens of all segments, depth first; a query that none of them names sees nothing. The tensors
    get to their device in one copy.

    Raises:
        ValueError: A range has no such slots or queries, or a size is out of range.
    """
    table = _checked(ranges, queries, size, tile)
    pieces = _cut(table, size)
    blocks = int(pieces.block[-1]) + 1 if len(pieces.block) else 0
    present = _present(pieces, blocks, queries)
    by_query = present.nonzero()[1]
    items, masks = _tiled(pieces, present, tile)
    order = np.argsort(by_query, kind="stable")
    offsets = np.concatenate([[0], np.bincount(by_query, minlength=queries).cumsum()])
    slots, positions = _tokens(table)
    parts = [slots, positions, masks, by_query, np.stack(items, 1).ravel(), order, offsets]
    moved = _moved(parts, torch.device(device))
    return Blocks(
        slots=moved[0],
        positions=moved[1],
        masks=moved[2],
        queries=moved[3],
        items=moved[4].view(-1, len(Tiles._fields)),
        order=moved[5],
        offsets=moved[6],
        number=queries,
        most=int(items.queries.max(initial=0)),
        pools=tuple(_pools(table, items)),
        read=int((items.end - items.begin).sum()),
        ranges=table,
    )


class _Pieces(NamedTuple):
    """The parts of ranges that lie in one block each, in order: arrays ``[pieces]``."""

    block: Integers
    begin: Integers
    end: Integers
    low: Integers
    high: Integers


def _checked(ranges: Iterable[SlotRange], queries: int, size: int, tile: int) -> Integers:
    """Return the ranges that are read as a table, ``[ranges, 6]``, pool by pool."""
    if size < 1 or not 1 <= tile <= BITS:
        raise ValueError(f"blocks of {size} tokens and tiles of {tile} queries: at least 1, and at most {BITS} queries")
    table = np.array([*ranges], np.int64).reshape(-1, len(SlotRange._fields))
    slot, tokens, low, high, *_ = table.T
    wrong = (slot < 0) | (tokens < 0) | (low < 0) | (low > high) | (high > queries)
    if wrong.any():
        raise ValueError(f"{SlotRange(*table[wrong][0].tolist())} among {queries} queries")
    table = table[(tokens > 0) & (high > low)]
    return table[table[:, _POOL].argsort(kind="stable")]


def _counted(counts: Integers) -> tuple[Integers, Integers]:
    """Return, for each of ``counts`` things of every kind, its kind and its number within that."""
    kind = np.repeat(np.arange(len(counts)), counts)
    return kind, np.arange(len(kind)) - (counts.cumsum() - counts)[kind]


def _cut(table: Integers, size: int) -> _Pieces:
    stops = table[:, 1].cumsum()
    starts = stops - table[:, 1]
    _, opens, pool = np.unique(table[:, _POOL], return_index=True, return_inverse=True)
    origin = starts[opens][pool]
    first = (starts - origin) // size
    kind, number = _counted((stops - origin - 1) // size - first + 1)
    at = first[kind] + number  # of the blocks of its pool
    begin = np.maximum(starts[kind], origin[kind] + at * size)
    end = np.minimum(stops[kind], origin[kind] + (at + 1) * size)
    block = np.cumsum(begin == origin[kind] + at * size) - 1
    return _Pieces(block, begin, end, table[kind, 2], table[kind, 3])


def _pools(table: Integers, items: Tiles) -> Iterator[Pool]:
    names, counts = np.unique(table[:, _POOL], return_counts=True)
    ends = np.searchsorted(items.begin, table[:, 1].cumsum()[counts.cumsum() - 1])
    begin = first = 0
    for name, count, end in zip(names.tolist(), counts.tolist(), ends.tolist(), strict=True):
        own = table[first : first + count]
        yield Pool(name, begin, end, int((own[:, 0] + own[:, 1]).max()))
        begin, first = end, first + count


def _present(pieces: _Pieces, blocks: int, queries: int) -> NDArray[np.bool_]:
    """Return which queries each block has, ``[blocks, queries]``."""
    shape = (blocks, queries + 1)
    edges = [np.bincount(pieces.block * shape[1] + at, minlength=blocks * shape[1]) for at in (pieces.low, pieces.high)]
    within: NDArray[np.bool_] = (edges[0] - edges[1]).reshape(shape)[:, :-1].cumsum(1) > 0
    return within


def _tiled(pieces: _Pieces, present: NDArray[np.bool_], tile: int) -> tuple[Tiles, Integers]:
    """Return the tiles of all blocks, and the masks of the tokens that they read."""
    counts = present.sum(1)
    pairs = counts.cumsum() - counts
    block, number = _counted(-(-counts // tile))
    each = np.bincount(pieces.block, minlength=len(counts))
    item, within = _counted(each[block])
    piece = (each.cumsum() - each)[block][item] + within
    rank = present.cumsum(1)  # of a query among those of a block
    low, high = rank[pieces.block, pieces.low] - 1, rank[pieces.block, pieces.high - 1]
    shift = number[item] * tile
    low, high = (low[piece] - shift).clip(0, tile), (high[piece] - shift).clip(0, tile)
    begin, end, lengths = _trimmed(pieces.begin[piece], pieces.end[piece], high > low, item, len(block))
    masks = np.repeat(_ONES[high - low] << low.clip(max=BITS - 1).astype(np.uint64), lengths).view(np.int64)
    sizes, first = end - begin, pairs[block] + number * tile
    items = Tiles(begin, end, sizes.cumsum() - sizes, first, np.minimum(counts[block] - number * tile, tile))
    return items, masks


def _trimmed(
    begin: Integers, end: Integers, seen: NDArray[np.bool_], item: Integers, items: int
) -> tuple[Integers, Integers, Integers]:
    """Return where the tokens of each item begin and end, and how many of each of its pieces lie between."""
    if not items:
        return begin, end, begin
    starts = np.searchsorted(item, np.arange(items))
    least = np.minimum.reduceat(np.where(seen, begin, np.iinfo(np.int64).max), starts)
    most = np.maximum.reduceat(np.where(seen, end, 0), starts)
    lengths = np.minimum(end, most[item]) - np.maximum(begin, least[item])
    return least, most, lengths.clip(0)


def _tokens(table: Integers) -> tuple[Integers, Integers]:
    kind, number = _counted(table[:, 1])
    return table[kind, 0] + number, table[kind, 4] + number


def _moved(parts: list[Integers], device: torch.device) -> list[torch.Tensor]:
    """Return arrays as tensors on a device, which one copy takes there.

    Each begins at a multiple of 16 bytes: Triton compiles kernels anew for pointers of another alignment.
    """
    sizes = [len(part) + len(part) % 2 for part in parts]
    whole = np.zeros(sum(sizes), np.int64)
    for part, end, size in zip(parts, np.cumsum(sizes).tolist(), sizes, strict=True):
        whole[end - size : end - size + len(part)] = part
    moved = torch.from_numpy(whole).to(device).split(sizes)
    return [each[: len(part)] for each, part in zip(moved, parts, strict=True)]
