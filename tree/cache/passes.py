"""Forward passes of a model over the rows of a cache."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.tree.cache.masks import NAME
from prefold.tree.cache.tree_cache import TreeCache
from prefold.tree.errors import NoAttention, WrongAttention


def require_tree_attention(model: PreTrainedModel) -> None:
    """Raise ``WrongAttention`` for a model that attends in another way."""
    found = model.config.get_text_config(decoder=True)._attn_implementation
    if found != NAME:
        raise WrongAttention(
            f"{type(model).__name__} attends by {found!r}: load it with attn_implementation='{NAME}', if it knows that"
        )


def run(model: PreTrainedModel, cache: TreeCache, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last logits, ``[rows, vocabulary]``, of new tokens, ``[rows, new]``, with the mask of all columns."""
    takes = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    return _logits(model, cache, ids, mask, options)[:, -1]


def advance(
    model: PreTrainedModel, cache: TreeCache, new: Sequence[Sequence[int]], *, every: bool = False
) -> torch.Tensor:
    """Let every row go on by tokens of its own, of any number, and return the last logits, ``[rows, vocabulary]``.

    The first pass of a cache makes a row for each. ``every``: the logits of all new tokens, ``[rows, longest,
    vocabulary]``, which end at the right.
    """
    longest, device = max(map(len, new)), model.device
    ids = torch.tensor([[0] * (longest - len(each)) + [*each] for each in new], device=device)
    counts = torch.tensor([len(each) for each in new], device=device)
    more = (torch.arange(longest, device=device) >= longest - counts[:, None]).long()
    earlier = cache.attention_mask(0, device) if cache.live.rows else more[:, :0]
    mask = torch.cat([earlier, more], 1)
    return _logits(model, cache, ids, mask, {}) if every else run(model, cache, ids, mask)


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield places of rows, the shortest first: of so many columns at most in all, and one row at least."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _logits(
    model: PreTrainedModel, cache: TreeCache, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    takes = inspect.signature(model.forward).parameters
    if "position_ids" in takes:
        options = options | {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]}
    elif cache.takes_positions:
        raise WrongAttention(f"{type(model).__name__} takes no position_ids, and a branch goes on where its path ends")
    if "past_key_values" not in takes:
        raise NoAttention(f"{type(model).__name__} takes no past_key_values: it has no attention to share")
    logits: torch.Tensor = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits
    if not cache.is_initialized:
        raise NoAttention(f"{type(model).__name__} stores no keys and values")
    return logits


def attend_by(model: PreTrainedModel, name: str) -> None:
    """Let a model attend by an implementation; ``WrongAttention`` where it cannot."""
    if model._can_set_attn_implementation():  # else transformers would say so in a warning of several lines
        model.set_attn_implementation(name)
    if model.config.get_text_config(decoder=True)._attn_implementation != name:
        raise WrongAttention(
            f"{type(model).__name__} does not attend through transformers' AttentionInterface: it cannot use {name!r}"
        )
