"""Reading a prompt once, whatever number of rows will go on from it."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.tree.cache.masks import NAME
from prefold.tree.cache.tree_cache import TreeCache
from prefold.tree.errors import NoAttention, WrongAttention


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    branches: int = 1,
    max_pages: int | None = None,
) -> TreeCache:
    """Read prompts but for their last tokens, each once, and return a cache to go on with in ``branches`` rows each.

    ``model.generate(input_ids, attention_mask=..., past_key_values=cache, num_return_sequences=branches)`` then runs
    the last tokens alone.

    Args:
        model: A causal language model with ``attn_implementation="prefold_tree"``.
        input_ids: Prompts, ``[prompts, tokens]``, padded at the left.
        attention_mask: Which of them are tokens, ``[prompts, tokens]``; None for all.
        branches: Rows for each prompt.
        max_pages: Pages that there may be.

    Raises:
        WrongAttention: The model attends in another way.
        NoAttention: The model stores no keys and values.
    """
    require_tree_attention(model)
    cache = TreeCache(max_pages=max_pages)
    if input_ids.shape[1] > 1:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        run(model, cache, input_ids[:, :-1], mask[:, :-1])
        cache.batch_repeat_interleave(branches)
    cache.branches = branches
    return cache


def require_tree_attention(model: PreTrainedModel) -> None:
    """Refuse a model that attends in another way.

    Raises:
        WrongAttention: It does.
    """
    found = model.config.get_text_config(decoder=True)._attn_implementation
    if found != NAME:
        raise WrongAttention(
            f"{type(model).__name__} attends by {found!r}: load it with attn_implementation='{NAME}', if it knows that"
        )


def run(model: PreTrainedModel, cache: TreeCache, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run new tokens, ``[rows, new]``, with the mask of all columns; returns the last logits, ``[rows, vocabulary]``.

    Raises:
        NoAttention: The model stores no keys and values.
    """
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    if "position_ids" in takes:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    elif cache.takes_positions:
        raise WrongAttention(f"{type(model).__name__} takes no position_ids, and a branch goes on where its path ends")
    if "past_key_values" not in takes:
        raise NoAttention(f"{type(model).__name__} takes no past_key_values: it has no attention to share")
    logits: torch.Tensor = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits
    if not cache.is_initialized:
        raise NoAttention(f"{type(model).__name__} stores no keys and values")
    return logits[:, -1]
