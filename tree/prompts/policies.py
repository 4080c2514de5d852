"""Policies of ``tree_generate``."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from prefold.tree.cache.generate import Branch, Decision, Policy
from prefold.tree.errors import CacheError


def sampler(
    branches: int,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    end: Collection[int] = (),
    seed: int = 0,
) -> Policy:
    """Return a policy that lets a prompt branch into samples, each of which ends after an ``end`` token or its length.

    Tokens are drawn as transformers' temperature and top-p have it; ``CacheError`` for values that they refuse.
    """
    if branches < 1 or max_new_tokens < 1:
        raise CacheError("sampler: branches and max_new_tokens are at least 1")
    warp, random = _warpers(temperature, top_p), torch.Generator().manual_seed(seed)

    def policy(live: Sequence[Branch], logits: torch.Tensor) -> Sequence[Decision]:
        none: Any = None  # the ids, which these warpers do not look at
        shares = warp(none, logits.float()).softmax(-1).cpu()
        counts = [_count(branch, branches, max_new_tokens, end) for branch in live]
        return [
            torch.multinomial(each, count, replacement=True, generator=random).tolist() if count else []
            for each, count in zip(shares, counts, strict=True)
        ]

    return policy


def _warpers(temperature: float, top_p: float) -> LogitsProcessorList:
    try:
        return LogitsProcessorList([TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(float(top_p))])
    except ValueError as error:
        raise CacheError(f"sampler: {error}") from error


def _count(branch: Branch, branches: int, longest: int, end: Collection[int]) -> int:
    if branch.parent is None:
        return branches
    return int(len(branch.tokens) < longest and branch.tokens[-1] not in end)
