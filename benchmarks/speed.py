"""How fast source and folded run, in turn, beside what their reads predict."""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from page import table
from plots import Plot, colour, link, marker
from reads import census_of
from shapes import DRAFT, PHI_1_5, PYTHIA_70M, PYTHIA_160M, PYTHIA_410M, QWEN, SERIAL, Shape, align, built, save
from timing import PROMPT, Prompt, Timed, compared, in_turn, load, random_tokens
from transformers import PreTrainedModel

from prefold.convert import convert_checkpoint
from prefold.convert.fold.reads import count_reads


@dataclass(frozen=True)
class _Run:
    """How one shape is measured: at which batches, how often, over how many steps and how long a prompt."""

    shape: Shape
    batches: tuple[int, ...]
    rounds: int
    steps: int
    prefill: int


# The larger a model, the longer a step, the fewer of them.
_RUNS = (
    _Run(PYTHIA_70M, (1, 8, 64), 9, 32, 2048),
    _Run(PYTHIA_160M, (1, 8, 64), 7, 32, 1024),
    _Run(DRAFT, (1, 8, 64), 9, 32, 2048),
    _Run(PYTHIA_410M, (1, 8), 7, 16, 512),
    _Run(SERIAL, (1, 8), 7, 16, 512),
    _Run(QWEN, (1, 8), 7, 16, 512),
    _Run(PHI_1_5, (1, 8), 5, 8, 512),
)
_AS_SAVED = "unaligned and aligned source"
_QUICK = _Run(PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=4096), (1, 8), 2, 4, 128)


@torch.no_grad()
def _prefill(model: PreTrainedModel, length: int) -> float:
    """Return the seconds of one pass over a prompt."""
    tokens = random_tokens(model.config.vocab_size, 1, length)
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
    seconds = in_turn({"source": source, "folded": folded}, rounds)
    medians = {f"{name}_s": median(each) for name, each in seconds.items()}
    return medians | compared(seconds["source"], seconds["folded"])


def _measure(run: _Run) -> list[dict[str, Any]]:
    census, dtype = census_of(run.shape), str(run.shape.dtype).removeprefix("torch.")
    told = {"shape": run.shape.name, "dtype": dtype, "rounds": run.rounds, "steps": run.steps}
    found = []
    with built(run.shape) as path:
        source, folded = load(path), load(convert_checkpoint(str(path), path.with_name("folded")).out)
        for batch in run.batches:
            reads = count_reads(census, batch)
            before, after = (partial(Prompt(model, batch).decode, run.steps) for model in (source, folded))
            measured = _compare(before, after, run.rounds)
            facts = {"what": f"decode, batch {batch}", "batch": batch, "tokens": batch * run.steps}
            found.append(told | facts | measured | {"predicted": reads.model_before / reads.model_after})
        measured = _compare(partial(_prefill, source, run.prefill), partial(_prefill, folded, run.prefill), run.rounds)
    facts = {"what": f"prefill, {run.prefill} tokens", "batch": None, "tokens": run.prefill, "predicted": None}
    return [*found, told | facts | measured]


def _measure_alignment(run: _Run) -> dict[str, Any]:
    """Compare a source as transformers saved it with the same whose tensors begin on a page."""
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        saved = save(run.shape, Path(folder))
        align(aligned := copytree(saved, Path(folder) / "aligned"))
        before, after = (partial(Prompt(load(path), 1).decode, run.steps) for path in (saved, aligned))
        measured = _compare(before, after, run.rounds)
    dtype = str(run.shape.dtype).removeprefix("torch.")
    told = {"shape": f"{run.shape.name}, {_AS_SAVED}", "dtype": dtype, "rounds": run.rounds, "steps": run.steps}
    return told | measured | {"what": "decode, batch 1", "batch": 1, "tokens": run.steps, "predicted": None}


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run every shape in bf16, or in fp32 where the processor multiplies that faster."""
    if quick:
        return [*_measure(_QUICK), _measure_alignment(_QUICK)]
    dtype = min((torch.bfloat16, torch.float32), key=_product)
    found: list[dict[str, Any]] = []
    for run in _RUNS:
        found += _measure(replace(run, shape=run.shape.of(dtype)))
        sys.stderr.write(f"{run.shape.name} done\n")
    alignment = [_measure_alignment(replace(run, shape=run.shape.of(dtype))) for run in _RUNS[:2]]
    return found + alignment


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    """Draw a point for each shape and batch: what the reads predict, and what was measured."""
    axes, decodes = figure.subplots(), [f for f in figures if f["predicted"]]
    shapes, batches = (list(dict.fromkeys(f[key] for f in decodes)) for key in ("shape", "batch"))
    for f in decodes:
        axes.errorbar(
            f["predicted"], f["ratio"], [[f["ratio"] - f["low"]], [f["high"] - f["ratio"]]], capsize=2, elinewidth=1,
            linestyle="", marker=marker(batches.index(f["batch"])), color=colour(shapes.index(f["shape"])),
        )  # fmt: skip
    ends = [1, max(f["predicted"] for f in decodes) + 0.005]
    axes.plot(ends, ends, color=_EQUAL, linestyle="--", linewidth=1, label="measured = predicted")
    axes.axhline(1, color=_EQUAL, linewidth=1)
    for index, shape in enumerate(shapes):
        axes.plot([], [], color=colour(index), linewidth=5, label=shape)
    for index, batch in enumerate(batches):
        axes.plot([], [], color=_EQUAL, linestyle="", marker=marker(index), label=f"batch {batch}")
    axes.set_xlabel("predicted: ratio of reads, source / folded")
    axes.set_ylabel("measured: ratio of times, source / folded")
    figure.legend(loc="outside right upper")


_EQUAL = "#59636e"
PLOTS: dict[str, Plot] = {"speed": _draw}


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
    rounds, steps = (_between([f[key] for f in figures]) for key in ("rounds", "steps"))
    return _TEXT.format(prompt=PROMPT, steps=steps, rounds=rounds, plot=_PLOT) + table(head, rows)


def _between(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} to {high}" if low < high else str(low)


_PLOT = link("speed", "Decode speed ratio: predicted from the reads against measured, for every shape and batch")
_TEXT = """## Speed

Random weights in real shapes, in bf16 or, where the processor multiplies that faster, in fp32. Source and folded run
in one process, in turn, {rounds} rounds; a decode round is {steps} greedy steps with a cache after a prompt of
{prompt} tokens. The larger a model, the fewer rounds and steps.

- **measured ratio**: the source's time / the folded model's time in the same round, the median of all rounds. Above 1
  the folded model is faster. **middle half**: half of the rounds lie in this range; a ratio whose range holds 1 does
  not tell the two apart.
- **predicted ratio**: bytes of parameters that the source reads in one decode step / bytes that the folded model reads.
  It would be the ratio of a machine that spends a step on these reads alone. Attention, activations and the calls of
  the operations themselves take time too, and at large batches the arithmetic does.
- **unaligned and aligned source**: transformers maps a file into memory as it lies, and a product with a matrix that
  begins at any 8 bytes may be slower than with one that begins at 64. prefold begins a file's tensors on a page; a
  file that transformers or another program wrote may not. What that alone is worth is in the last lines, between two
  copies of the source; in all others the source is aligned as the folded model is, so that folding alone is compared.

{plot}

The bars are the middle half of the rounds. On the dashed line a step would be faster by as much as it reads less.

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
