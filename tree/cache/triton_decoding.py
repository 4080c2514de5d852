"""One decoding step's attention to a tree in the Triton kernels, instead of group by group."""

from weakref import WeakKeyDictionary

import torch

from prefold.tree.cache.blocks import Blocks, SlotRange, make_blocks
from prefold.tree.cache.masks import Window
from prefold.tree.cache.partial import Scoring, add_sinks
from prefold.tree.cache.pool import LayerStore
from prefold.tree.cache.states import Update
from prefold.tree.cache.step import Part, spans_of, windowed
from prefold.tree.cache.triton_attention import attend_pools, query_tile

_Key = tuple[Window | None, torch.device, int]
_Prepared = tuple[Blocks, torch.Tensor | None]
# What layers of one kind share, for as long as their step is there.
_MADE: WeakKeyDictionary[Part, dict[_Key, _Prepared]] = WeakKeyDictionary()


def attend_decoding(
    part: Part,
    query: torch.Tensor,
    update: Update,
    layer: LayerStore,
    window: Window | None,
    how: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from the one new token of each row of a part to all up to itself, which the pool has by now.

    ``query`` is of the whole batch, ``[batch, heads, new, head_dim]``; ``sinks`` is a logit for each head that has no
    value, ``[heads]``. Bytes that are read are counted for the cache of ``update``, each once.

    Returns:
        ``[rows, 1, heads, width]``.
    """
    own = part.pick(query)[:, :, 0]
    widest = max(own.shape[2], update.values.shape[-1])
    tile = query_tile(own.shape[1], layer.heads, widest, own.element_size())
    blocks, ends = _prepared(part, window, own.device, tile)
    pools = {pool.name: layer.extent(pool.name) for pool in blocks.pools}
    exact = None if sinks is None else torch.float32
    found = attend_pools(own, pools, blocks, how, window=window, ends=ends, dtype=exact)
    update.cache.reads[-1] += len(blocks.slots) * layer.token_bytes
    out = found[0] if sinks is None else add_sinks(found, sinks).to(query.dtype)
    return out[:, None]


def _prepared(part: Part, window: Window | None, device: torch.device, tile: int) -> _Prepared:
    made, key = _MADE.setdefault(part, {}), (window, device, tile)
    if key not in made:
        ends = None if window is None else torch.tensor([leaf.end - 1 for leaf in part.leaves], device=device)
        made[key] = make_blocks(_stretches(part, window), len(part.leaves), tile=tile, device=device), ends
    return made[key]


def _stretches(part: Part, window: Window | None) -> list[SlotRange]:
    """Return what the new tokens of rows see, depth first."""
    spans = windowed(spans_of(part.leaves, 0), part.leaves, part.new, window)
    return [
        SlotRange(span.slot, span.tokens, span.low, span.high, span.position, span.segment.run.extent)
        for span in sorted(spans, key=lambda span: (span.low, span.position))
        if span.segment.run is not None
    ]
