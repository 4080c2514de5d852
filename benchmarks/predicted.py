"""Compare the plan with this machine, or with its accelerator: ``python -m benchmarks.predicted [--quick]``.

Writes the section on this machine of ``docs/plan-validation.md``; with ``--quick`` it prints it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import write_section
from benchmarks.shapes import PYTHIA_70M, PYTHIA_160M, Shape, built
from benchmarks.timing import PROMPT, Prompt, compared, in_turn, load
from prefold.convert import convert_checkpoint
from prefold.demo import CHECKPOINT
from prefold.plan import Chip, Factors, Fold, Workload, mesh_of, plan_layouts
from prefold.plan.config import shape_from_config
from prefold.plan.this_machine import this_machine

_STEPS, _ROUNDS = 32, 9
_TEXT = """## This machine

Written by `python -m benchmarks.predicted`. `prefold plan --hardware this` measures the machine in a few seconds: how
fast a product of one token reads large weights, how fast large products are, and what every step and every layer of a
transformers model costs however small it is. The last is measured on models of {few} and of {many} layers, whose
weights take no time. Here the decode speed that follows is compared with a measured one, at batch 1 after a prompt of
{prompt} tokens; source and folded run in turn, and figures are medians of {rounds} rounds. **weights** is the share of
the predicted time that goes into reading them: where that is small, calls of operations are the bound, and not memory.
"""


@contextmanager
def _checkpoint(shape: Shape | None) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of a model to measure, the demo's where there is no shape."""
    if shape is None:
        yield "demo", Path(CHECKPOINT)
        return
    with built(shape) as folder:
        yield shape.name, folder


def _predicted(folder: Path, chip: Chip, factors: Factors, fold: Fold | None) -> tuple[float, float]:
    """Return the seconds of a decode step, and the share of them that goes into reading weights."""
    config = json.loads((folder / "config.json").read_text())
    workload = Workload("decode", 1, PROMPT + _STEPS // 2)
    shape = shape_from_config(config, gated=False)
    chosen = plan_layouts(shape, chip, mesh_of(chip, 1), workload, fold=fold, factors=factors).chosen
    seconds = chosen.calibrated_seconds or chosen.ideal_seconds
    return seconds, chosen.terms.weights / seconds


def _measure(shape: Shape | None, chip: Chip, factors: Factors, rounds: int) -> dict[str, Any]:
    with _checkpoint(shape) as (name, folder), TemporaryDirectory(prefix="prefold-bench-") as scratch:
        out = convert_checkpoint(str(folder), Path(scratch) / "folded").out
        prompts = {"source": Prompt(load(folder), 1), "folded": Prompt(load(out), 1)}
        seconds = in_turn({name: partial(each.decode, _STEPS) for name, each in prompts.items()}, rounds)
        source, weights = _predicted(folder, chip, factors, None)
        folded, _ = _predicted(folder, chip, factors, Fold())
    return {
        "model": name,
        "weights": weights,
        "measured": {name: median(each) / _STEPS for name, each in seconds.items()},
        "predicted": {"source": source, "folded": folded},
        "ratio": compared(seconds["source"], seconds["folded"]),
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure the machine anew, and then the models."""
    chip, factors = this_machine(refresh=True)
    if quick:
        return [_measure(None, chip, factors, 2)]
    return [_measure(shape, chip, factors, _ROUNDS) for shape in (None, PYTHIA_70M, PYTHIA_160M)]


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    chip, factors = this_machine()
    rates = (
        f"Measured: {chip.memory_bandwidth / 1e9:.1f} GB/s, {chip.peak['bf16'] / 1e9:.0f} GFLOP/s in bf16, "
        f"{factors.step * 1e3:.2f} ms for a step and {factors.layer * 1e3:.2f} ms for a layer."
    )
    head = ["bf16", "weights", "measured tokens/s", "predicted", "error", "folded, measured", "predicted", "error"]
    head += ["measured ratio", "middle half", "predicted ratio"]
    return "\n".join(
        [_TEXT.format(few=2, many=10, prompt=PROMPT, rounds=_ROUNDS), rates, "", table(head, _rows(figures))]
    )


def _rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for each in figures:
        row = [each["model"], f"{each['weights']:.0%}"]
        for name in ("source", "folded"):
            measured, predicted = each["measured"][name], each["predicted"][name]
            row += [f"{1 / measured:,.0f}", f"{1 / predicted:,.0f}", f"{measured / predicted - 1:+.0%}"]
        ratio = each["ratio"]
        row += [f"{ratio['ratio']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}"]
        rows.append([*row, f"{each['predicted']['source'] / each['predicted']['folded']:.3f}"])
    return rows


def main() -> None:
    """Measure, and write the section or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the demo alone, few rounds, printed and not written")
    quick = parser.parse_args().quick
    machine = describe()
    text = f"{render(measure(quick=quick))}\n\n{sentence(machine)}"
    if quick:
        sys.stdout.write(text + "\n")
    else:
        write_section("this machine", text)


if __name__ == "__main__":
    main()
