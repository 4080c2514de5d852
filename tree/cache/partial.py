"""Attention to one part of the keys, with what is needed to merge it with other parts.

Shapes: queries ``[batch, heads, queries, head_dim]``, keys ``[batch, heads, tokens, head_dim]``, values
``[batch, heads, tokens, width]``; outputs ``[batch, heads, queries, width]`` and the logarithm of the sum of
exponentials, float32 ``[batch, heads, queries]``.

Merging is exact whatever the order, in float32 (DeFT, phase 2). Partial outputs are ``[kv_heads, pairs, queries,
width]`` and their totals ``[kv_heads, pairs, queries]``; a pair is a row of the batch and a group of keys that it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prefold.tree.cache.masks import Window

Partial = tuple[torch.Tensor, torch.Tensor]
# Scores that are held at one time: longer prompts are attended to in blocks of queries.
_SCORES = 1 << 23
_NONE = float("-inf")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores: the scale of its products, and the bound that soft-capping keeps them under."""

    scale: float
    softcap: float | None = None


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or as it is if that is less."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring, mask: torch.Tensor | None = None
) -> Partial:
    """Attend to all keys, or to those that ``mask``, ``[queries, tokens]``, lets each query see.

    By a kernel where there is one: two products are no faster (`python benchmarks/tree.py --case kernels`).
    """
    if mask is not None or not _has_kernel(query, keys, values, scoring):
        return _in_blocks(query, keys, values, scoring, mask)
    return _flash(query, keys, values, scoring, causal=False)


def attend_causally(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scoring: Scoring,
    window: Window | None = None,
    position: int = 0,
) -> Partial:
    """Attend from tokens to themselves and those before them, at most as far back as a window reaches.

    ``position`` is that of the first of them.
    """
    tokens = query.shape[2]
    near = window is None or window.first(position + tokens - 1) <= position
    if near and _has_kernel(query, keys, values, scoring):
        return _flash(query, keys, values, scoring, causal=True)
    size = max(1, min(tokens, _SCORES // max(1, query.shape[0] * query.shape[1] * tokens)))
    blocks = []
    for begin in range(0, tokens, size):
        end = min(begin + size, tokens)
        first = max(0, window.first(position + begin) - position) if window else 0
        mask = _causal_mask(range(begin, end), range(first, end), window, position, query.device)
        seen = (keys[:, :, first:end], values[:, :, first:end])
        blocks.append(attend_masked(query[:, :, begin:end], *seen, scoring, mask))
    return _joined(blocks)


def _causal_mask(
    queries: range, tokens: range, window: Window | None, position: int, device: torch.device
) -> torch.Tensor:
    at = position + torch.arange(queries.start, queries.stop, device=device)[:, None]
    to = position + torch.arange(tokens.start, tokens.stop, device=device)[None, :]
    return (to <= at) if window is None else (to <= at) & (to >= window.first(at))


def _joined(blocks: Sequence[Partial]) -> Partial:
    return torch.cat([out for out, _ in blocks], 2), torch.cat([total for _, total in blocks], 2)


def _has_kernel(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> bool:
    if scoring.softcap is not None or keys.shape[-1] != values.shape[-1] or keys.shape[2] == 0:
        return False
    return query.device.type == "cpu" or (query.device.type == "cuda" and keys.shape[-1] % 8 == 0)


def _flash(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring, *, causal: bool) -> Partial:
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = kernel(query, keys, values, 0.0, causal, scale=scoring.scale)
        return out, total
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, total, *_ = efficient(query, keys, values, None, True, 0.0, causal, scale=scoring.scale)
    return out, total[..., : query.shape[2]]


def _in_blocks(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring, mask: torch.Tensor | None
) -> Partial:
    each = max(1, _SCORES // max(1, query.shape[0] * query.shape[1] * keys.shape[2]))
    if each >= query.shape[2]:
        return attend_masked(query, keys, values, scoring, mask)
    masks = [None] * -(-query.shape[2] // each) if mask is None else list(mask.split(each))
    blocks = [
        attend_masked(part, keys, values, scoring, seen) for part, seen in zip(query.split(each, 2), masks, strict=True)
    ]
    return _joined(blocks)


def attend_masked(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring, mask: torch.Tensor | None
) -> Partial:
    """Attend by two matrix products in float32, with a mask that broadcasts to ``[batch, heads, queries, tokens]``.

    A query that sees no key has output 0 and the total of nothing.
    """
    query, keys, values = wide(query), wide(keys), wide(values)
    scores = (query * scoring.scale) @ keys.transpose(-1, -2)
    if scoring.softcap is not None:
        scores = scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    if mask is not None:
        scores.masked_fill_(~mask, _NONE)
    if scores.shape[-1] == 0:
        return scores.new_zeros(*scores.shape[:-1], values.shape[-1]), scores.new_full(scores.shape[:-1], _NONE)
    highest = scores.amax(-1, keepdim=True)
    if mask is not None:
        highest.masked_fill_(highest == _NONE, 0)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights @ values).div_(total if mask is None else total.clamp_min(torch.finfo(total.dtype).tiny))
    return out, (highest + total.log()).squeeze(-1)


def merge(parts: Sequence[Partial], index: torch.Tensor | None) -> Partial:
    """Merge the parts of each row.

    ``index`` is the pairs of each row, counted over all parts, ``[rows, pairs of a row]``; the number of all pairs
    stands for none. It is None if every part has one pair for every row, in order.
    """
    if index is not None:
        return _merge_pairs(parts, index)
    out, total = parts[0]
    for other, other_total in parts[1:]:
        out = torch.lerp(wide(out), wide(other), torch.sigmoid(other_total - total).unsqueeze(-1))
        total = torch.logaddexp(total, other_total)
    return out, total


def _merge_pairs(parts: Sequence[Partial], index: torch.Tensor) -> Partial:
    heads, _, queries, width = parts[0][0].shape
    nothing = parts[0][1].new_full((heads, 1, queries), _NONE)
    totals = torch.cat([*(total for _, total in parts), nothing], 1)[:, index]
    outs = torch.cat([*(wide(out) for out, _ in parts), nothing.new_zeros(heads, 1, queries, width)], 1)[:, index]
    highest = totals.amax(2, keepdim=True)
    weights = (totals - highest.masked_fill(highest == _NONE, 0)).exp_()
    sums = weights.sum(2)
    out = (outs * weights.unsqueeze(-1)).sum(2) / sums.clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(-1)
    return out, highest.squeeze(2) + sums.log()


def add_sinks(part: Partial, sinks: torch.Tensor) -> torch.Tensor:
    """Add a logit without value to the softmax of every head, ``[kv_heads, 1, queries]``."""
    out, total = part
    return out * torch.sigmoid(total - wide(sinks)).unsqueeze(-1)
