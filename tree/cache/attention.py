"""``attn_implementation="prefold_tree"``: attention that reads every segment of a tree once (DeFT).

Importing this makes the name known to transformers.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from prefold.tree.cache.masks import NAME, TreeMask, Window
from prefold.tree.cache.partial import Partial, Scoring, add_sinks, attend, attend_causally, attend_masked, merge
from prefold.tree.cache.pool import LayerStore
from prefold.tree.cache.states import States, Update, arranged
from prefold.tree.cache.step import Part, RowGroup, Step
from prefold.tree.errors import WrongAttention

# What changes attention in ways that are not those of a tree; None means that a model does not use it.
_REFUSED = ("position_bias", "indices", "block_indices", "cu_seq_lens_q", "cu_seq_lens_k", "cache", "head_mask")


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | States,
    value: torch.Tensor | States,
    attention_mask: torch.Tensor | TreeMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' other implementations do, to a tree if the keys come from a TreeCache.

    ``query`` is ``[batch, heads, new, head_dim]``; ``key`` and ``value`` are ordinary, ``[batch, kv_heads, tokens,
    head_dim]`` with an ordinary mask, or the states of a TreeCache. Scores are scaled by one over the root of the width
    of a head if ``scaling`` is None, and approach ``softcap`` as a hyperbolic tangent; ``s_aux`` is a logit without
    value for each head (attention sinks), ``[heads]``.

    Returns:
        ``[batch, new, heads, width]`` and None, since weights are never there as a whole.

    Raises:
        WrongAttention: The model wants something that attention to a tree does not do.
    """
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    if not isinstance(key, States):
        mask = attention_mask.ordinary() if isinstance(attention_mask, TreeMask) else attention_mask
        if softcap is None and s_aux is None:
            out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)  # type: ignore[arg-type]
            return out, None
        return _ordinary(query, key, value, attention_mask, scoring, s_aux), None  # type: ignore[arg-type]
    _refuse(module, kwargs)
    window = _window(module, attention_mask, kwargs)
    padding = attention_mask.padding if isinstance(attention_mask, TreeMask) else None
    step = key.update.cache.store(key.update, padding)
    return _attend(query, key.update, step, window, scoring, s_aux), None


def _ordinary(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | TreeMask | None,
    scoring: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    seen = mask.ordinary(skip=False) if isinstance(mask, TreeMask) else mask
    each = query.shape[1] // key.shape[1]
    part = attend_masked(query, repeat_kv(key, each), repeat_kv(value, each), scoring, seen)
    out = part[0] if sinks is None else add_sinks(part, sinks.view(1, -1, 1))
    return out.to(query.dtype).transpose(1, 2).contiguous()


def _refuse(module: torch.nn.Module, kwargs: dict[str, Any]) -> None:
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise WrongAttention(f"{NAME}: {type(module).__name__} wants {name}, which attention to a tree does not do")
    if kwargs.get("dropout"):
        raise WrongAttention(f"{NAME}: no dropout in attention to a tree; call model.eval()")


def _window(module: torch.nn.Module, mask: torch.Tensor | TreeMask | None, kwargs: dict[str, Any]) -> Window | None:
    """Return how far back queries see, by the model's own mask or, without one, by the layer."""
    if isinstance(mask, TreeMask):
        return mask.window()
    if mask is not None:
        raise WrongAttention(f"{NAME}: a mask of the caller's own; attention to a tree takes one of [batch, columns]")
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise WrongAttention(f"{NAME}: {type(module).__name__} is not causal, so that it has no tree")
    size = kwargs.get("sliding_window")
    return Window("sliding", size) if size else None


def _attend(
    query: torch.Tensor,
    update: Update,
    step: Step,
    window: Window | None,
    scoring: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from every row's new tokens, ``[batch, new, heads, width]``; zeros where there is no token."""
    query = query if step.order is None else arranged(query, step.order)
    outs = [_back_end(part, query)(part, query, update, window, scoring, sinks) for part in step.parts]
    if step.parts and step.whole(len(query)):
        return outs[0]
    out = query.new_zeros(len(query), step.columns, query.shape[1], update.values.shape[-1])
    for part, found in zip(step.parts, outs, strict=True):
        rows = torch.tensor(part.rows, device=query.device)
        for copy in range(step.copies):
            out[rows + copy, step.columns - part.new :] = found
    if step.order is None:
        return out
    index = step.order.to(out.device)[:, :, None, None].expand_as(out)
    return torch.empty_like(out).scatter_(1, index, out)


def _back_end(part: Part, query: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return the function that attends from a part: the Triton kernels where they decode on CUDA."""
    return _decoding() if part.new == 1 and query.device.type == "cuda" else _attend_part


@cache  # every layer of every step asks, and a search for what is not installed reads folders
def _decoding() -> Callable[..., torch.Tensor]:
    if find_spec("triton") is None:
        return _attend_part
    from prefold.tree.cache.triton_attention import attend_decoding  # needs triton

    return attend_decoding


def _attend_part(
    part: Part,
    query: torch.Tensor,
    update: Update,
    window: Window | None,
    scoring: Scoring,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend from the new tokens of rows that gain equally many, ``[rows, new, heads, width]``.

    Tokens with nothing before them, as a prompt's, attend as in any model.
    """
    work, own = part.work(window, query.device), part.pick(query)
    layer, heads = update.store, update.store.heads
    rows, each = own.shape[0], own.shape[1] // heads
    update.cache.reads[-1] += (work.tokens + (rows * part.new if work.own else 0)) * layer.token_bytes
    if not work.groups and sinks is None and scoring.softcap is None and part.is_within(window):
        alone = (own, part.pick(update.keys), part.pick(update.values))
        return scaled_dot_product_attention(*alone, is_causal=True, scale=scoring.scale, enable_gqa=True).transpose(
            1, 2
        )
    by_head = own.unflatten(1, (heads, each)).transpose(0, 1).flatten(2, 3)  # every head's queries side by side
    parts = [
        _attend_group(group, by_head, pick, layer, scoring) for group, pick in zip(work.groups, work.picks, strict=True)
    ]
    if work.own:
        parts.append(_attend_own(own, part, update, window, scoring))
    out, total = merge(parts, work.index)
    if sinks is not None:
        by_query = sinks.view(heads, 1, each, 1).expand(heads, 1, each, part.new).flatten(2, 3)
        out = add_sinks((out, total), by_query)
    by_token: torch.Tensor = out.unflatten(2, (each, part.new)).permute(1, 3, 0, 2, 4)
    return by_token.reshape(rows, part.new, heads * each, -1).to(query.dtype)


def _attend_group(
    group: RowGroup, query: torch.Tensor, pick: torch.Tensor | None, layer: LayerStore, scoring: Scoring
) -> Partial:
    """Attend from the queries of a group, of ``[kv_heads, rows, queries, head_dim]``, in one call."""
    count, rows = group.count, len(group.rows)
    picked = query[:, group.rows[0] : group.rows[0] + rows] if pick is None else query.index_select(1, pick)
    heads, _, queries, width = picked.shape
    keys, values = layer.view(group.extent, group.slot, group.tokens, count, group.stride)
    mask = group.mask
    if mask is not None:
        each = queries // mask.shape[1]
        mask = mask[:, None].expand(-1, each, -1, -1).reshape(-1, group.tokens)
    folded = picked.reshape(heads, count, group.width * queries, width).transpose(0, 1)
    out, total = attend(folded, keys, values, scoring, mask)
    return out.transpose(0, 1).reshape(heads, rows, queries, -1), total.transpose(0, 1).reshape(heads, rows, queries)


def _attend_own(query: torch.Tensor, part: Part, update: Update, window: Window | None, scoring: Scoring) -> Partial:
    """Attend from several new tokens of a row to one another; heads share keys that are not repeated."""
    keys, values = part.pick(update.keys), part.pick(update.values)
    if window is None or window.kind == "sliding":  # where a row begins matters to chunks alone
        return _attend_rows(query, keys, values, scoring, window, 0)
    each = zip(query.split(1), keys.split(1), values.split(1), part.leaves, strict=True)
    rows = [_attend_rows(q, k, v, scoring, window, leaf.end - part.new) for q, k, v, leaf in each]
    return torch.cat([out for out, _ in rows], 1), torch.cat([total for _, total in rows], 1)


def _attend_rows(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scoring: Scoring,
    window: Window | None,
    position: int,
) -> Partial:
    rows, heads, new, _ = keys.shape
    each = query.shape[1] // heads
    shared = [states.reshape(rows * heads, 1, new, -1).expand(-1, each, -1, -1) for states in (keys, values)]
    folded = query.reshape(rows * heads, each, new, -1)
    out, total = attend_causally(folded, shared[0], shared[1], scoring, window, position)
    out = out.unflatten(0, (rows, heads)).transpose(0, 1).reshape(heads, rows, each * new, -1)
    return out, total.unflatten(0, (rows, heads)).transpose(0, 1).reshape(heads, rows, each * new)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, TreeMask)
