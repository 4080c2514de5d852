"""Time every placement of one folded checkpoint: ``python placement_speed.py FOLDED STEPS ROUNDS PROMPT...``."""

import resource
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cache import drop, resident_share, warm
from case import tell
from timing import Prompt, compared, in_turn, load, read_all
from transformers import PreTrainedModel

from prefold.convert.checkpoint.files import TABLE

PLACEMENTS = ("device", "host", "disk")
_BATCHES = (1, 8)
_CASES = {"device": "device", "disk, warm": "disk", "disk, cold": "disk"}


def share_weights(model: PreTrainedModel, owner: PreTrainedModel) -> None:
    """Let a model use another's weights, so that two models differ in their tables alone: not in where pages lie."""
    owned = dict(owner.named_parameters())
    for name, parameter in model.named_parameters():
        if name in owned and owned[name].shape == parameter.shape:
            parameter.data = owned[name].data


def _models(folder: Path) -> dict[str, PreTrainedModel]:
    models = {placement: load(folder, prefold_placement=placement) for placement in PLACEMENTS}
    read_all(models["device"])
    for model in models.values():
        share_weights(model, models["device"])
    return models


class _Drawn:
    """Random tokens: other ones for every round, but in a round the same for all."""

    def __init__(self, vocabulary: int, batch: int, length: int, turns: int) -> None:
        self._shape, self._turns, self._asked = (batch, length), turns, 0
        self._generator, self._vocabulary = torch.Generator().manual_seed(batch * length), vocabulary
        self._tokens = torch.empty(0)

    def next(self) -> torch.Tensor:
        """Return tokens, ``[batch, length]``."""
        if self._asked % self._turns == 0:
            self._tokens = torch.randint(self._vocabulary, self._shape, generator=self._generator)
        self._asked += 1
        return self._tokens


def _decode(models: dict[str, PreTrainedModel], batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time steps over given tokens: a model with random weights would choose the same one again and again."""
    tokens = _Drawn(models["device"].config.vocab_size, batch, steps, len(models))

    def follow(prompt: Prompt) -> float:
        return prompt.follow(tokens.next())

    prompts = {name: Prompt(model, batch) for name, model in models.items()}
    seconds = in_turn({name: partial(follow, prompt) for name, prompt in prompts.items()}, rounds)
    return {
        "batch": batch,
        "tokens": batch * steps,
        "seconds": {name: median(each) for name, each in seconds.items()},
        "to_device": {name: compared(seconds["device"], each) for name, each in seconds.items()},
    }


@torch.no_grad()
def _first_token(model: PreTrainedModel, ids: torch.Tensor) -> float:
    start = time.perf_counter()
    model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
    return time.perf_counter() - start


def _fetched() -> dict[str, int]:
    """Return how often this process waited for a page from the disk, and how many bytes it had fetched from there."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counted = next(line for line in lines if line.startswith("read_bytes:"))
    return {"faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt, "bytes": int(counted.split()[1])}


def _first_tokens(models: dict[str, PreTrainedModel], table: Path, length: int, rounds: int) -> dict[str, Any]:
    """Time prompts; before a cold one the system forgets the table, and before all others it holds all of it."""
    tokens = _Drawn(models["device"].config.vocab_size, 1, length, len(_CASES))
    told: dict[str, list[dict[str, float]]] = {name: [] for name in _CASES}

    def once(name: str) -> float:
        (drop if "cold" in name else warm)(table)
        held, before = resident_share(table), _fetched()
        seconds = _first_token(models[_CASES[name]], tokens.next())
        told[name].append({"held": held} | {key: count - before[key] for key, count in _fetched().items()})
        return seconds

    seconds = in_turn({name: partial(once, name) for name in _CASES}, rounds)
    return {
        "prompt": length,
        "seconds": {name: median(each) for name, each in seconds.items()},
        "to_device": {name: compared(each, seconds["device"]) for name, each in seconds.items()},
        "table": {name: {key: median(one[key] for one in each) for key in each[0]} for name, each in told.items()},
    }


def main(folder: str, steps: str, rounds: str, *prompts: str) -> None:
    """Time decode steps with all of the table in memory, and first tokens with and without."""
    table = Path(folder) / TABLE
    models = _models(Path(folder))
    warm(table)
    decodes = [_decode(models, batch, int(steps), int(rounds)) for batch in _BATCHES]
    first = [_first_tokens(models, table, int(length), int(rounds)) for length in prompts]
    tell({"decode": decodes, "first": first})


if __name__ == "__main__":
    main(*sys.argv[1:])
