"""Merging partial attention: exact whatever the order, in float32 (DeFT, phase 2).

Partial outputs are ``[kv_heads, pairs, queries, width]`` and their totals, the logarithms of sums of exponentials,
``[kv_heads, pairs, queries]``; a pair is a row of the batch and a group of keys that it sees.
"""

from collections.abc import Sequence

import torch

from prefold.tree.cache.partial import Partial, wide


def merge(parts: Sequence[Partial], index: torch.Tensor | None) -> Partial:
    """Merge what each row has from several groups.

    Args:
        parts: Partial attention.
        index: Which pairs each row has, counted over all parts, ``[rows, pairs of a row]``; the number of all pairs
            stands for none. None if every part has one pair for every row, in order.
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
    nothing = parts[0][1].new_full((heads, 1, queries), float("-inf"))
    totals = torch.cat([*(total for _, total in parts), nothing], 1)[:, index]
    outs = torch.cat([*(wide(out) for out, _ in parts), nothing.new_zeros(heads, 1, queries, width)], 1)[:, index]
    highest = totals.amax(2, keepdim=True)
    weights = (totals - highest.masked_fill(highest == float("-inf"), 0)).exp_()
    sums = weights.sum(2)
    out = (outs * weights.unsqueeze(-1)).sum(2) / sums.clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(-1)
    return out, highest.squeeze(2) + sums.log()


def add_sinks(part: Partial, sinks: torch.Tensor) -> torch.Tensor:
    """Let a logit of its own take part in the softmax of every head, ``[kv_heads, 1, queries]``, with no value."""
    out, total = part
    return out * torch.sigmoid(total - wide(sinks)).unsqueeze(-1)
