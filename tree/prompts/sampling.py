"""Sampling several continuations of a prompt that is read once, with a tree and without, to compare what each costs."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel

from prefold.tree.cache.masks import NAME
from prefold.tree.cache.passes import attend_by
from prefold.tree.prompts.prefixes import prefill


@dataclass(frozen=True)
class Sampled:
    """Continuations, ``[branches, new]``, and their cost.

    The prefill ends when the first new token can be chosen. Bytes are of keys and values: those that attention read in
    the decode ``steps``, and those that are held at the end.
    """

    continuations: torch.Tensor
    prefill_seconds: float
    decode_seconds: float
    steps: int
    read_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Asked:
    """A request for continuations of a prompt, ``[tokens]``, of at most ``new`` tokens each."""

    prompt: list[int]
    branches: int
    new: int
    temperature: float = 1.0
    seed: int = 0
    max_pages: int | None = None


class _Clock(LogitsProcessor):
    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.ticks.append(time.perf_counter())
        return scores


class _CountingCache(DynamicCache):
    """Counts the bytes of keys and values that it hands to attention, for every pass."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.reads: list[int] = []
        self._first: int | None = None

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._first in (None, layer_idx):
            self._first = layer_idx
            self.reads.append(0)
        self.reads[-1] += sum(each.numel() * each.element_size() for each in found)
        return found

    @property
    def held(self) -> int:
        layers: list[Any] = self.layers
        kept = [each for layer in layers for each in (layer.keys, layer.values) if each is not None]
        return sum(each.numel() * each.element_size() for each in kept)


def sample_tree(model: PreTrainedModel, asked: Asked) -> Sampled:
    """Sample with the prompt read and stored once; errors are those of ``prefill`` and ``TreeCache``."""
    before = model.config.get_text_config(decoder=True)._attn_implementation
    attend_by(model, NAME)
    try:
        ids = torch.tensor([asked.prompt], device=model.device)
        start = time.perf_counter()
        cache = prefill(model, ids, branches=asked.branches, max_pages=asked.max_pages)
        found, ticks = _generate(model, ids, asked, cache)
        steps = len(ticks) - 1
        reads = sum(cache.reads[len(cache.reads) - steps :])
        return _sampled(found, start, ticks, asked, reads, cache.memory().bytes)
    finally:
        attend_by(model, before)


def sample_plain(model: PreTrainedModel, asked: Asked) -> Sampled:
    """Sample as transformers does by itself, with the model's own attention implementation."""
    ids = torch.tensor([asked.prompt], device=model.device)
    cache = _CountingCache(model.config.get_text_config(decoder=True))
    start = time.perf_counter()
    found, ticks = _generate(model, ids, asked, cache)
    return _sampled(found, start, ticks, asked, sum(cache.reads[1:]), cache.held)


def _sampled(found: Any, start: float, ticks: list[float], asked: Asked, reads: int, held: int) -> Sampled:
    return Sampled(
        continuations=found[:, len(asked.prompt) :],
        prefill_seconds=ticks[0] - start,
        decode_seconds=ticks[-1] - ticks[0],
        steps=len(ticks) - 1,
        read_bytes=reads,
        cache_bytes=held,
    )


@torch.no_grad()
def _generate(model: PreTrainedModel, ids: torch.Tensor, asked: Asked, cache: Any) -> tuple[torch.Tensor, list[float]]:
    clock, settings = _Clock(), model.generation_config
    pad = next((each for each in (settings.pad_token_id, settings.eos_token_id) if isinstance(each, int)), 0)
    torch.manual_seed(asked.seed)
    generator: Any = model
    found: torch.Tensor = generator.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        cache_implementation=None,  # as Gemma 2 and 3 name one beside which no cache can be given
        do_sample=True,
        num_beams=1,
        temperature=asked.temperature,
        num_return_sequences=asked.branches,
        max_new_tokens=asked.new,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([clock]),
    )
    return found, clock.ticks
