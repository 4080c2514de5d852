"""Attention to a flattened tree by torch's FlexAttention with a tree mask: a reference, and a baseline.

The pool is attended to where it lies, with a mask by slot. Compiled, it is compiled anew for other numbers of slots or
queries, which a tree has at every step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import flex_attention as flex

from prefold.tree.cache.blocks import BLOCK, Blocks
from prefold.tree.cache.masks import Window
from prefold.tree.cache.partial import Partial, Scoring

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def flex_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: Blocks,
    how: Scoring,
    *,
    window: Window | None = None,
    ends: torch.Tensor | None = None,
    mask: flex.BlockMask | None = None,
    run: Callable[..., Any] = flex.flex_attention,
) -> Partial:
    """Attend from every query to what lies on its path.

    Args:
        query: ``[queries, heads, head_dim]``.
        keys: The pool, ``[kv_heads, slots, head_dim]``.
        values: Likewise, ``[kv_heads, slots, width]``.
        blocks: Which query sees which slots, of one pool.
        how: The scale of the scores, and the bound of soft-capping.
        window: How far back a query sees; None for all of its path.
        ends: With a window, the position of every query, ``[queries]``.
        mask: What :func:`tree_mask` gave for the same blocks and window; it is made if not given.
        run: torch's ``flex_attention``, or what ``torch.compile`` made of it.

    Returns:
        ``[queries, heads, width]``, zeros for a query that sees nothing, and the log-sum-exp of its scores, float32
        ``[queries, heads]``, there minus infinity.
    """
    mask = tree_mask(blocks, keys.shape[1], window, ends) if mask is None else mask
    cap = how.softcap
    score = None if cap is None else _capped(cap)
    found, more = run(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        score_mod=score,
        block_mask=mask,
        scale=how.scale,
        enable_gqa=query.shape[1] != keys.shape[0],
        return_aux=flex.AuxRequest(lse=True),
    )
    return found[0].transpose(0, 1), more.lse[0].transpose(0, 1)


def tree_mask(
    blocks: Blocks, slots: int, window: Window | None = None, ends: torch.Tensor | None = None
) -> flex.BlockMask:
    """Return which blocks of slots hold something for some query, and which query sees which slot.

    Args:
        blocks: Which query sees which slots, of one pool.
        slots: Of the pool.
        window: How far back a query sees; None for all of its path.
        ends: With a window, the position of every query, ``[queries]``.

    Raises:
        ValueError: There is a window, and no positions; or more than one pool.
    """
    if len(blocks.pools) > 1:
        raise ValueError(f"{len(blocks.pools)} pools: FlexAttention attends to one")
    low, high, position = _by_slot(blocks, slots)
    device = blocks.slots.device
    if window is None:
        return flex.create_block_mask(_on_path(low, high), None, None, blocks.number, slots, device, BLOCK)
    if ends is None:
        raise ValueError("a window needs the position of every query")
    near = flex.and_masks(_on_path(low, high), _near(position, window.first(ends)))
    return flex.create_block_mask(near, None, None, blocks.number, slots, device, BLOCK)


def _by_slot(blocks: Blocks, slots: int) -> torch.Tensor:
    """Return the first query, the one behind the last, and the position of every slot; no query where it is free."""
    table = blocks.ranges
    of = np.repeat(np.arange(len(table)), table[:, 1])
    found = np.zeros((3, slots), np.int64)
    found[:, blocks.slots.cpu().numpy()] = [table[of, 2], table[of, 3], blocks.positions.cpu().numpy()]
    return torch.from_numpy(found).to(blocks.slots.device)


def _on_path(low: torch.Tensor, high: torch.Tensor) -> Mask:
    def on_path(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        return (low[slot] <= query) & (query < high[slot])

    return on_path


def _near(position: torch.Tensor, first: torch.Tensor) -> Mask:
    def near(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        return position[slot] >= first[query]

    return near


def _capped(cap: float) -> Callable[..., torch.Tensor]:
    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.tanh(score / cap) * cap

    return capped
