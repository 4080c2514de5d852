"""How long a conversion takes, beside a plain copy of the same bytes and the table's arithmetic."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import megabytes, table
from shapes import LARGE, PYTHIA_160M, SERIAL, Shape, built

from prefold.convert import Inspection, convert_checkpoint
from prefold.convert.checkpoint.files import TABLE

TARGET = 1.25
_PRODUCT = 4096
_PIECE = 512 << 10


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and seconds of all processors."""

    clock: float
    processor: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.clock + other.clock, self.processor + other.processor)

    def times(self, factor: float) -> "Spent":
        """Return a multiple."""
        return Spent(self.clock * factor, self.processor * factor)


def _spent(work: Callable[[], object]) -> Spent:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - clock, time.process_time() - processor)


def _copy(source: Path, folder: Path, table_bytes: int) -> tuple[Spent, Spent]:
    """Copy the source's weights and write as many bytes as the table has; then wait for the disk."""

    def copy() -> None:
        for weights in source.glob("*.safetensors"):
            shutil.copyfile(weights, folder / weights.name)
        with (folder / TABLE).open("wb") as file:
            piece = os.urandom(_PIECE)
            for start in range(0, table_bytes, _PIECE):
                file.write(piece[: table_bytes - start])

    def wait() -> None:
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    folder.mkdir()
    return _spent(copy), _spent(wait)


def _product(one: torch.Tensor, other: torch.Tensor) -> Spent:
    return _spent(lambda: [one @ other for _ in range(3)]).times(1 / 3)


def _round(
    source: Path, factors: tuple[torch.Tensor, torch.Tensor], made: Inspection, *, copy_first: bool
) -> dict[str, Any]:
    """Time everything once.

    Nothing is removed before the end: who writes second would write into memory that the system has at hand.
    """
    table_bytes, flops = _work(made)
    folders = out, copied = source.with_name("folded"), source.with_name("copy")
    if copy_first:
        copy, wait = _copy(source, copied, table_bytes)
    conversion = _spent(lambda: convert_checkpoint(str(source), out))
    if not copy_first:
        copy, wait = _copy(source, copied, table_bytes)
    arithmetic = _product(*factors).times(flops / (2 * _PRODUCT**3))
    for folder in folders:
        shutil.rmtree(folder)
    floor = copy + arithmetic
    return {
        "conversion_s": conversion.clock,
        "copy_s": copy.clock,
        "arithmetic_s": arithmetic.clock,
        "wait_s": wait.clock,
        "ratio": conversion.clock / floor.clock,
        "synced_ratio": conversion.clock / (floor.clock + wait.clock),
        "conversion_processor_s": conversion.processor,
        "processor_ratio": conversion.processor / floor.processor,
    }


def _work(inspection: Inspection) -> tuple[int, int]:
    """Return the table's bytes, and its floating-point operations: two for every folded weight and token."""
    savings = inspection.savings
    if savings is None:
        raise ValueError(inspection.verdict)
    return savings.table_bytes, 2 * savings.sides[0].rows * savings.weights_eliminated


def _measure(shape: Shape, rounds: int) -> dict[str, Any]:
    with built(shape) as source:
        made = convert_checkpoint(str(source), source.with_name("folded")).inspection  # warms files and libraries
        shutil.rmtree(source.with_name("folded"))
        factors = torch.randn(_PRODUCT, _PRODUCT).to(shape.dtype), torch.randn(_PRODUCT, _PRODUCT).to(shape.dtype)
        each = [_round(source, factors, made, copy_first=index % 2 == 1) for index in range(rounds)]
        source_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    table_bytes, flops = _work(made)
    medians = {name: median(one[name] for one in each) for name in each[0]}
    best = min(one["ratio"] for one in each)
    return {"shape": shape.name, "source_bytes": source_bytes, "table_bytes": table_bytes, "flops": flops} | {
        "rounds": rounds,
        "best_ratio": best,
        **medians,
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Convert each shape several times, in turn with what it is compared to."""
    if quick:
        return [_measure(PYTHIA_160M.changed("small", num_hidden_layers=1, vocab_size=4096), 2)]
    return [_measure(PYTHIA_160M, 7), _measure(SERIAL, 7), _measure(LARGE, 3)]


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["bf16", "source MB", "table MB", "GFLOP", "rounds", "conversion s", "copy s", "wait s", "arithmetic s"]
    head += ["ratio", "best", "synced ratio", "processor s", "processor ratio"]
    names = ["conversion_s", "copy_s", "wait_s", "arithmetic_s", "ratio", "best_ratio", "synced_ratio"]
    names += ["conversion_processor_s", "processor_ratio"]
    rows = [
        [
            f["shape"],
            megabytes(f["source_bytes"]),
            megabytes(f["table_bytes"]),
            f"{f['flops'] / 1e9:,.0f}",
            str(f["rounds"]),
            *(f"{f[name]:.2f}" for name in names),
        ]
        for f in figures
    ]
    return _TEXT.format(target=TARGET, size=_PRODUCT) + table(head, rows)


_TEXT = """## Conversion time

Folding alone, without the check of the result, in a process that has loaded its libraries already.

- **copy**: a plain copy of the source's weight files, and as many bytes written as the table has. It does not wait for
  the disk. **wait**: how long it would have to. A conversion waits, so that a crash leaves no half output.
- **arithmetic**: two operations for every folded weight and token, at the speed of a product of two bf16 matrices of
  {size} x {size} in the same round.
- **ratio**: conversion / (copy + arithmetic). The target is at most {target}. Conversion, copy and product are measured
  in turn; all figures are medians over the rounds, and **best** is the best round's ratio.
  Whether the conversion or the copy writes first changes every round.
- **synced ratio**: conversion / (copy + wait + arithmetic): the copy is then as safe on the disk as the conversion.
- **processor ratio**: the same from the time that the processors worked, which other programs on the machine disturb
  less. It does not see whether work is spread over the cores.

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
