"""How fast source and folded run, in turn, beside what their reads predict."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from page import table
from shapes import DRAFT, PYTHIA_70M, PYTHIA_160M, Shape, built
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefold.convert import convert_checkpoint
from prefold.convert.model import load_config, load_kind
from prefold.convert.reads import Census, count_reads
from prefold.convert.source import open_config
from prefold.convert.study import study_model

_PROMPT, _STEPS, _PREFILL = 32, 32, 2048
_BATCHES = (1, 8, 64)
Timed = Callable[[], float]


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    model.eval()
    return model


def _tokens(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)


class _Prompt:
    """A model that has read a prompt and is asked, again and again, to go on from there."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batch: int) -> None:
        out = model(_tokens(model, batch, _PROMPT), use_cache=True, logits_to_keep=1)
        self._model, self._first, self._cache = model, out.logits[:, -1:].argmax(-1), out.past_key_values

    @torch.no_grad()
    def decode(self, steps: int) -> float:
        """Return the seconds of greedy steps with a cache, each of one token for every sequence of the batch."""
        token = self._first
        start = time.perf_counter()
        for _ in range(steps):
            token = self._model(token, past_key_values=self._cache, use_cache=True).logits[:, -1:].argmax(-1)
        seconds = time.perf_counter() - start
        self._cache.crop(-steps)
        return seconds


@torch.no_grad()
def _prefill(model: PreTrainedModel, length: int) -> float:
    """Return the seconds of one pass over a prompt."""
    tokens = _tokens(model, 1, length)
    start = time.perf_counter()
    model(tokens, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


def _product(dtype: torch.dtype) -> float:
    """Return the seconds of a product of two large matrices, the best of a few."""
    factor, seconds = torch.randn(2048, 2048).to(dtype), list[float]()
    for _ in range(5):
        start = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _compare(source: Timed, folded: Timed, rounds: int) -> dict[str, Any]:
    """Time both in turn, each round in the other order, after one round that does not count."""
    pairs = []
    for index in range(rounds + 1):
        if index % 2:
            after, before = folded(), source()
        else:
            before, after = source(), folded()
        pairs.append((before, after))
    ratios = [before / after for before, after in pairs[1:]]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return {
        "source_s": median(before for before, _ in pairs[1:]),
        "folded_s": median(after for _, after in pairs[1:]),
        "ratio": median(ratios),
        "low": low,
        "high": high,
    }


def _census(source: Path) -> Census:
    opened = open_config(str(source))
    config = load_config(opened)
    return study_model(load_kind(opened, config).model_class, config).census


def _measure(shape: Shape, rounds: int, steps: int, prefill: int) -> list[dict[str, Any]]:
    with built(shape) as path:
        out = convert_checkpoint(str(path), path.with_name("folded")).out
        source, folded, census = _load(path), _load(out), _census(path)
    dtype = str(shape.dtype).removeprefix("torch.")
    told = {"shape": shape.name, "dtype": dtype, "rounds": rounds}
    found = []
    for batch in _BATCHES:
        reads = count_reads(census, batch)
        prompts = _Prompt(source, batch), _Prompt(folded, batch)
        before, after = (partial(prompt.decode, steps) for prompt in prompts)
        measured = _compare(before, after, rounds)
        found.append(
            told
            | {"what": f"decode, batch {batch}", "tokens": batch * steps}
            | measured
            | {"predicted": reads.model_before / reads.model_after}
        )
    measured = _compare(partial(_prefill, source, prefill), partial(_prefill, folded, prefill), rounds)
    return [*found, told | {"what": f"prefill, {prefill} tokens", "tokens": prefill, "predicted": None} | measured]


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run every shape in bf16, or in fp32 where the processor multiplies that faster."""
    if quick:
        return _measure(PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=4096), 2, 4, 128)
    dtype = min((torch.bfloat16, torch.float32), key=_product)
    found: list[dict[str, Any]] = []
    for shape in (PYTHIA_70M, PYTHIA_160M, DRAFT):
        found += _measure(shape.of(dtype), 7, _STEPS, _PREFILL)
        sys.stderr.write(f"{shape.name} done\n")
    return found


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["", "pass", "source tokens/s", "folded tokens/s", "measured ratio", "middle half", "predicted ratio"]
    rows = [
        [
            f"{f['shape']}, {f['dtype']}",
            f["what"],
            f"{f['tokens'] / f['source_s']:,.0f}",
            f"{f['tokens'] / f['folded_s']:,.0f}",
            f"{f['ratio']:.3f}",
            f"{f['low']:.3f} to {f['high']:.3f}",
            f"{f['predicted']:.3f}" if f["predicted"] else "",
        ]
        for f in figures
    ]
    return _TEXT.format(prompt=_PROMPT, steps=_STEPS, rounds=figures[0]["rounds"]) + table(head, rows)


_TEXT = """## Speed

Random weights in real shapes, in bf16 or, where the processor multiplies that faster, in fp32. Source and folded run
in one process, in turn, {rounds} rounds; a decode round is {steps} greedy steps with a cache after a prompt of
{prompt} tokens.

- **measured ratio**: the source's time / the folded model's time in the same round, the median of all rounds. Above 1
  the folded model is faster. **middle half**: half of the rounds lie in this range; a ratio whose range holds 1 does
  not tell the two apart.
- **predicted ratio**: bytes of parameters that the source reads in one decode step / bytes that the folded model reads.
  It would be the ratio of a machine that spends a step on these reads alone. Attention, activations and the calls of
  the operations themselves take time too, and at large batches the arithmetic does.

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
