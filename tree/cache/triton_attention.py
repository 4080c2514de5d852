"""Attention to a flattened tree in Triton kernels, for decoding on CUDA (DeFT-Flatten).

Checked in Triton's interpreter, and compiled for GPUs, but not yet run on one: ``python -m benchmarks.gpu`` does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton

from prefold.tree.cache.blocks import BITS, Blocks, Pool, SlotRange, make_blocks
from prefold.tree.cache.masks import Window
from prefold.tree.cache.partial import Partial, Scoring, add_sinks
from prefold.tree.cache.states import Update
from prefold.tree.cache.step import Part, views_of, windowed
from prefold.tree.cache.triton_kernels import attend, merge

_DOT = 16  # the least that a side of a product can be
_ROWS, _MERGED = 128, 16
_INTERPRETED = not isinstance(attend, triton.JITFunction)
_FUSED = {"enable_fp_fusion": True}  # said because its default is about to change
_Key = tuple[Window | None, torch.device, int]
_Prepared = tuple[Blocks, torch.Tensor | None]
# What layers of one kind share, for as long as their step is there.
_MADE: WeakKeyDictionary[Part, dict[_Key, _Prepared]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Launch:
    """How phase 1 runs: rows of a product at most, tokens of one, warps for so many rows, and loads under way."""

    rows: int
    step: int
    warps: int
    stages: int


def make_launch(widest: int, value_bytes: int, stages: int = 2) -> Launch:
    """Return a launch that fits registers and shared memory, for heads of so many values of so many bytes."""
    pad = triton.next_power_of_2(widest)
    shrink = max(1, pad * value_bytes // 256) * (2 if value_bytes > 2 else 1)  # float32 has no tensor cores
    rows = max(_DOT, _ROWS // shrink)
    warps = 8 if rows * pad > 1 << 13 or value_bytes > 2 else 4
    return Launch(rows, max(_DOT, 64 // shrink), warps, stages)


def query_tile(heads: int, kv_heads: int, widest: int, value_bytes: int) -> int:
    """Return how many queries :func:`prefold.tree.cache.blocks.make_blocks` should put into a tile."""
    return min(BITS, max(1, make_launch(widest, value_bytes).rows // (heads // kv_heads)))


def attend_pools(
    query: torch.Tensor,
    pools: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
    blocks: Blocks,
    scoring: Scoring,
    *,
    window: Window | None = None,
    ends: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    launch: Launch | None = None,
) -> Partial:
    """Attend from every query to its path, and read each block once for each tile of its queries.

    ``query`` is ``[queries, heads, head_dim]``; ``pools`` are keys, ``[kv_heads, slots, head_dim]``, and values,
    ``[kv_heads, slots, width]``, of every pool, with any strides. A window needs ``ends``, the position of every query,
    ``[queries]``. The output has the type of the queries if ``dtype`` is None.

    Returns:
        ``[queries, heads, width]``, zeros for a query that sees nothing, and the log-sum-exp of its scores, float32
        ``[queries, heads]``, there minus infinity.

    Raises:
        ValueError: The tensors do not fit one another or the blocks, or a window has no positions.
    """
    _check(query, pools, blocks, window, ends)
    (queries, heads, _), pairs = query.shape, len(blocks.queries)
    width = next((values.shape[-1] for _, values in pools.values()), query.shape[-1])
    found = query.new_empty(queries, heads, width, dtype=dtype or query.dtype)
    total = query.new_empty(queries, heads, dtype=torch.float32)
    partial = query.new_empty(pairs, heads, width, dtype=torch.float32), query.new_empty(pairs, heads).float()
    firsts = None if window is None else window.first(ends).contiguous()
    with torch.cuda.device_of(query):
        for pool in blocks.pools:
            _attend_pool(query, *pools[pool.name], blocks, pool, firsts, partial, scoring, launch)
        if queries:
            pad = triton.next_power_of_2(width)
            merged = (*partial, blocks.order, blocks.offsets, found, total)
            merge[queries, heads](*merged, HEADS=heads, WIDTH=width, WIDTH_PAD=pad, PAIRS=_MERGED, **_FUSED)
    return found, total


def _attend_pool(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: Blocks,
    pool: Pool,
    firsts: torch.Tensor | None,
    partial: Partial,
    scoring: Scoring,
    launch: Launch | None,
) -> None:
    heads, head_dim, width = query.shape[1], query.shape[2], values.shape[2]
    launch = launch or make_launch(max(head_dim, width), query.element_size())
    constants, options = compiled_for(heads, keys.shape[0], head_dim, width, blocks.most, launch)
    attend[pool.end - pool.begin, keys.shape[0]](
        query, keys, values, blocks.slots, blocks.positions, blocks.masks, blocks.queries, blocks.items,
        blocks.slots if firsts is None else firsts, *partial, pool.begin, scoring.scale, scoring.softcap or 1.0,
        *query.stride(), *keys.stride(), *values.stride(), **constants, CAPPED=scoring.softcap is not None,
        WINDOWED=firsts is not None, WIDE=_INTERPRETED and query.dtype == torch.bfloat16, **options,
    )  # fmt: skip


def compiled_for(
    heads: int, kv_heads: int, head_dim: int, width: int, most: int, launch: Launch
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return constants and options that phase 1 is compiled with, for at most ``most`` queries in an item."""
    rows = max(_DOT, triton.next_power_of_2(most * (heads // kv_heads)))
    warps = launch.warps if rows >= launch.rows else max(4, launch.warps * rows // launch.rows)
    constants = {
        "HEADS": heads,
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "HEAD_PAD": max(_DOT, triton.next_power_of_2(head_dim)),
        "WIDTH_PAD": max(_DOT, triton.next_power_of_2(width)),
        "ROWS": rows,
        "STEP": launch.step,
    }
    return constants, {"num_warps": warps, "num_stages": launch.stages, **_FUSED}


def _check(
    query: torch.Tensor,
    pools: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
    blocks: Blocks,
    window: Window | None,
    ends: torch.Tensor | None,
) -> None:
    """Refuse tensors that the kernels, which check nothing, would read or write out of bounds."""
    if query.shape[0] != blocks.number or query.device != blocks.slots.device:
        raise ValueError(
            f"{query.shape[0]} queries on {query.device}, and blocks of {blocks.number} on {blocks.slots.device}"
        )
    if window is not None and (ends is None or ends.shape != query.shape[:1]):
        raise ValueError("a window needs the position of every query")
    for pool in blocks.pools:
        _check_pool(query, *pools[pool.name], pool.stop)


def _check_pool(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, stop: int) -> None:
    for states in (keys, values):
        if states.shape[1] < stop or states.dtype != query.dtype or states.device != query.device:
            raise ValueError(
                f"{[*states.shape]} of {states.dtype} on {states.device}, for queries of {query.dtype} on"
                f" {query.device} and slots up to {stop}"
            )
    if keys.shape[0] != values.shape[0] or query.shape[1] % keys.shape[0] or query.shape[2] != keys.shape[2]:
        raise ValueError(f"queries {[*query.shape]}, keys {[*keys.shape]} and values {[*values.shape]}")


def attend_decoding(
    part: Part,
    query: torch.Tensor,
    update: Update,
    window: Window | None,
    scoring: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from the one new token of each row of a part to all up to itself, ``[rows, 1, heads, width]``.

    ``query`` is of the whole batch, ``[batch, heads, new, head_dim]``; ``sinks`` is a logit for each head that has no
    value, ``[heads]``. Bytes that are read are counted for the cache of ``update``, each once.
    """
    own, layer = part.pick(query)[:, :, 0], update.store
    widest = max(own.shape[2], update.values.shape[-1])
    tile = query_tile(own.shape[1], layer.heads, widest, own.element_size())
    blocks, ends = _prepared(part, window, own.device, tile)
    pools = {pool.name: layer.extent(pool.name) for pool in blocks.pools}
    exact = None if sinks is None else torch.float32
    found = attend_pools(own, pools, blocks, scoring, window=window, ends=ends, dtype=exact)
    update.cache.reads[-1] += len(blocks.slots) * layer.token_bytes
    out = found[0] if sinks is None else add_sinks(found, sinks).to(query.dtype)
    return out[:, None]


def _prepared(part: Part, window: Window | None, device: torch.device, tile: int) -> _Prepared:
    made, key = _MADE.setdefault(part, {}), (window, device, tile)
    if key not in made:
        ends = None if window is None else torch.tensor([leaf.end - 1 for leaf in part.leaves], device=device)
        made[key] = make_blocks(_ranges(part, window), len(part.leaves), tile=tile, device=device), ends
    return made[key]


def _ranges(part: Part, window: Window | None) -> list[SlotRange]:
    views = windowed(views_of(part.leaves, 0), part.leaves, part.new, window)
    return [
        SlotRange(view.slot, view.tokens, view.low, view.high, view.position, view.segment.run.extent)
        for view in sorted(views, key=lambda view: (view.low, view.position))
        if view.segment.run is not None
    ]
