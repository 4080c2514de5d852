"""Times of things that are run in turn, so that whatever slows the machine down slows all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging

PROMPT = 32
Timed = Callable[[], float]
Figure = TypeVar("Figure")


def load(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a checkpoint in its own dtype, as a user does."""
    transformers_logging.disable_progress_bar()
    options = {"trust_remote_code": True, "dtype": "auto"} | options
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    model.eval()
    return model


def read_all(model: PreTrainedModel) -> PreTrainedModel:
    """Read every parameter once, since on a CPU transformers maps files, whose pages come when they are needed."""
    for parameter in model.parameters():
        parameter.view(-1).view(torch.uint8).max()
    return model


def random_tokens(vocabulary: int, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return tokens, ``[batch, length]``; other seeds make other ones."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(timed: Mapping[str, Callable[[], Figure]], rounds: int) -> dict[str, list[Figure]]:
    """Measure all in turn, each round in another order, after one round that does not count."""
    names, found = list(timed), {name: list[Figure]() for name in timed}
    for index in range(rounds + 1):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(timed[name]())
    return {name: each[1:] for name, each in found.items()}


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Return the ratio of every round's two times: its median, and between what the middle half of them lies."""
    ratios = [one / other for one, other in zip(before, after, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return {"ratio": median(ratios), "low": low, "high": high}


class Prompt:
    """A model that has read a prompt and is asked, again and again, to go on from there."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batch: int) -> None:
        prompt = random_tokens(model.config.vocab_size, batch, PROMPT).to(model.device)
        out = model(prompt, use_cache=True, logits_to_keep=1)
        self._model, self._first, self._cache = model, out.logits[:, -1:].argmax(-1), out.past_key_values

    @torch.no_grad()
    def decode(self, steps: int) -> float:
        """Return the seconds of greedy steps with a cache, each of one token for every sequence of the batch."""
        token = self._first
        start = time.perf_counter()
        for _ in range(steps):
            token = self._model(token, past_key_values=self._cache, use_cache=True).logits[:, -1:].argmax(-1)
        token.tolist()  # an accelerator is done only when its result is here
        seconds = time.perf_counter() - start
        self._cache.crop(-steps)
        return seconds

    @torch.no_grad()
    def follow(self, tokens: torch.Tensor) -> float:
        """Return the seconds of steps over given tokens, ``[batch, steps]``, whatever the model would choose."""
        start = time.perf_counter()
        for token in tokens.split(1, dim=1):
            self._model(token, past_key_values=self._cache, use_cache=True).logits[:, -1:].argmax(-1)
        seconds = time.perf_counter() - start
        self._cache.crop(-tokens.shape[1])
        return seconds
