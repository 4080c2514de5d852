"""Compare the plan with this machine, or with its accelerator: ``python -m benchmarks.predicted [--quick]``.

Writes the section on this machine of ``docs/plan-validation.md``; with ``--quick`` it prints it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import write_section
from benchmarks.shapes import PYTHIA_70M, PYTHIA_160M, Shape, built
from benchmarks.timing import PROMPT, Prompt, compared, in_turn, load
from prefold.convert import convert_checkpoint
from prefold.demo import CHECKPOINT
from prefold.plan import Chip, Factors, Fold, Workload, mesh_of, plan_layouts
from prefold.plan.model.config import shape_from_config
from prefold.plan.this_machine import this_chip

_STEPS, _ROUNDS = 32, 15
_TEXT = """## This machine

Written by `python -m benchmarks.predicted`. `prefold plan --hardware this` measures the machine in a few seconds: how
fast a product of one token reads large weights, how fast large products are, and, on small models, what share of that
bandwidth a model's layers reach, what every step and every layer costs however small it is, and what of that a fold
leaves out. Here the decode speed that follows is compared with a measured one, at batch 1 after a prompt of {prompt}
tokens; source and folded run in turn, and figures are medians of {rounds} rounds. The machine is measured anew right
before each model, since its rates change from minute to minute. **weights** is the share of the predicted time that
goes into reading them: where that is small, calls of operations are the bound, and not memory.
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
    chosen = plan_layouts(shape, chip, mesh_of(chip, 1), workload, fold=fold, calibrations=(factors,)).chosen
    seconds = chosen.calibrated_seconds or chosen.ideal_seconds
    return seconds, chosen.terms.weights / seconds


def _measure(shape: Shape | None, rounds: int) -> dict[str, Any]:
    """Measure the machine anew, and then a model."""
    chip, factors = this_chip(refresh=True)
    with _checkpoint(shape) as (name, folder), TemporaryDirectory(prefix="prefold-bench-") as scratch:
        out = convert_checkpoint(str(folder), Path(scratch) / "folded").out
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        models = {"source": load(folder, device_map=device), "folded": load(out, device_map=device)}
        prompts = {name: Prompt(model, 1) for name, model in models.items()}
        seconds = in_turn({name: partial(each.decode, _STEPS) for name, each in prompts.items()}, rounds)
        source, weights = _predicted(folder, chip, factors, None)
        folded, _ = _predicted(folder, chip, factors, Fold())
    return {
        "model": name,
        "weights": weights,
        "measured": {name: median(each) / _STEPS for name, each in seconds.items()},
        "predicted": {"source": source, "folded": folded},
        "bandwidth": chip.memory_bandwidth,
        "factors": asdict(factors),
        "ratio": compared(seconds["source"], seconds["folded"]),
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure the models."""
    if quick:
        return [_measure(None, 2)]
    return [_measure(shape, _ROUNDS) for shape in (None, PYTHIA_70M, PYTHIA_160M)]


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["bf16", "weights", "measured tokens/s", "predicted", "error", "folded, measured", "predicted", "error"]
    head += ["measured ratio", "middle half", "predicted ratio"]
    measured = ["before", "GB/s", "of it in layers", "ms a step", "ms a layer", "\u00b5s a module that is called"]
    text = _TEXT.format(prompt=PROMPT, rounds=_ROUNDS)
    return "\n".join([text, table(head, _rows(figures)), "", table(measured, _rates(figures))])


def _rates(figures: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for each in figures:
        found = each["factors"]
        costs = [f"{found['step'] * 1e3:.2f}", f"{found['layer'] * 1e3:.2f}", f"{found['call'] * 1e6:.1f}"]
        rows.append([each["model"], f"{each['bandwidth'] / 1e9:.1f}", f"{found['memory']:.0%}", *costs])
    return rows


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
