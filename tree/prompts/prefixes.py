"""Prompts that have beginnings in common: each segment of their tree is read once, in prefill and in decode."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.tree.cache.passes import advance, batches, require_tree_attention
from prefold.tree.cache.tree_cache import TreeCache
from prefold.tree.errors import CacheError

_TOKENS = 1 << 14  # that are read in one pass


@dataclass(eq=False)
class Segment:
    """Tokens that prompts have in common; ``prompts`` end here, and others go on in ``children``, by first token."""

    tokens: list[int]
    children: "dict[int, Segment]" = field(default_factory=dict)
    prompts: list[int] = field(default_factory=list)
    held: int = -1


def make_prompt_tree(prompts: Sequence[Sequence[int]]) -> Segment:
    """Return the root of a tree of prompts; it has no tokens, and every segment below it has."""
    root = Segment([])
    for number, prompt in enumerate(prompts):
        _insert(root, list(prompt)).prompts.append(number)
    return root


def _insert(segment: Segment, left: list[int]) -> Segment:
    while left:
        child = segment.children.get(left[0])
        if child is None:
            child = segment.children[left[0]] = Segment(left)
        common = _common(child.tokens, left)
        if common < len(child.tokens):
            upper = Segment(child.tokens[:common], {child.tokens[common]: child})
            child.tokens = child.tokens[common:]
            child = segment.children[left[0]] = upper
        segment, left = child, left[common:]
    return segment


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


@torch.no_grad()
def share_prefixes(
    model: PreTrainedModel,
    prompts: Iterable[torch.Tensor | Sequence[int]],
    *,
    max_pages: int | None = None,
    **options: Any,
) -> Any:
    """Return what ``model.generate`` returns for prompts, each ``[tokens]``, padded at the left; ``options`` are its.

    The model is a causal language model with ``attn_implementation="prefold_tree"``. Beginnings that any prompts have
    in common are found, stored once, and read once for all of them.

    Raises:
        CacheError: There is no prompt, or one has no token.
        WrongAttention: The model attends in another way.
    """
    require_tree_attention(model)
    rows = [torch.as_tensor(each).reshape(-1).tolist() for each in prompts]
    if not rows or not all(rows):
        raise CacheError("share_prefixes: one prompt at least, and one token at least in each")
    ids, mask = _padded(model, rows, options)
    branches = max(_option(model, options, name) for name in ("num_return_sequences", "num_beams"))
    cache = prefill(model, ids, mask, branches=branches, max_pages=max_pages)
    generator: Any = model
    return generator.generate(ids, attention_mask=mask, past_key_values=cache, **options)


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    branches: int = 1,
    max_pages: int | None = None,
) -> TreeCache:
    """Read prompts but for their last tokens, and their common beginnings once; returns a cache for ``generate``.

    ``model.generate(input_ids, attention_mask=..., past_key_values=cache, num_return_sequences=branches)`` then runs
    the last tokens alone. The model is a causal language model with ``attn_implementation="prefold_tree"``; prompts,
    ``[prompts, tokens]``, are padded at the left, and all columns are tokens if ``attention_mask`` is None.

    Raises:
        WrongAttention: The model attends in another way.
        NoAttention: The model stores no keys and values.
    """
    require_tree_attention(model)
    cache = TreeCache(max_pages=max_pages)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = [ids[seen.bool()].tolist()[:-1] for ids, seen in zip(input_ids, mask, strict=True)]  # the last runs later
    if any(rows):
        _read(model, cache, rows)
        cache.align(input_ids.shape[1] - 1)
        cache.batch_repeat_interleave(branches)
    cache.branches = branches
    return cache


def _option(model: PreTrainedModel, options: dict[str, Any], name: str) -> int:
    config = options.get("generation_config") or model.generation_config
    return int(options.get(name) or getattr(config, name, None) or 1)


def _padded(
    model: PreTrainedModel, rows: Sequence[list[int]], options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    longest, pad = max(map(len, rows)), options.get("pad_token_id")
    pad = model.generation_config.pad_token_id if pad is None else pad
    ids = torch.full((len(rows), longest), pad or 0, device=model.device)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


def _read(model: PreTrainedModel, cache: TreeCache, prompts: Sequence[Sequence[int]]) -> None:
    """Store the tree of prompts, level by level; row ``b`` of the cache then is at the end of prompt ``b``."""
    root = make_prompt_tree(prompts)
    level = [*root.children.values()]
    held = _plant(model, cache, [Segment([], prompts=root.prompts)] * bool(root.prompts) + level)
    cache.takes_positions = True
    while level := [child for segment in level for child in _heir(segment)]:
        for batch in batches([len(child.tokens) for child in level], _TOKENS):
            held += _grow(model, cache, [level[place] for place in batch])
    names = {prompt: segment.held for segment in held for prompt in segment.prompts}
    cache.branch([names[number] for number in range(len(prompts))])
    for segment in held:
        cache.prune(segment.held)
    cache.takes_positions = False


def _heir(segment: Segment) -> list[Segment]:
    """Return the segments that go on from one, which know where that is held."""
    for child in segment.children.values():
        child.held = segment.held
    return [*segment.children.values()]


def _plant(model: PreTrainedModel, cache: TreeCache, roots: Sequence[Segment]) -> list[Segment]:
    advance(model, cache, [root.tokens for root in roots])
    return _hold(cache, roots)


def _grow(model: PreTrainedModel, cache: TreeCache, segments: Sequence[Segment]) -> list[Segment]:
    cache.branch([segment.held for segment in segments])
    advance(model, cache, [segment.tokens for segment in segments])
    return _hold(cache, segments)


def _hold(cache: TreeCache, segments: Sequence[Segment]) -> list[Segment]:
    for row, segment in enumerate(segments):
        segment.held = cache.hold(row)
    return [*segments]
