"""Fit what a chip reaches in single kernels: ``python -m benchmarks.kernels MEASURED``.

MEASURED has ``gemm-CHIP.csv``, ``decode_attention-CHIP.csv``, ``prefill_attention-CHIP.csv`` and
``collectives-CHIP.csv``, with the columns that ``docs/plan-validation.md`` names. The result is the ``kernels`` of
``plan/calibration.json``. Each fit is the least squares of the logarithms of predicted over measured seconds, of which
large misses count less (``soft_l1``).
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.fitting import write_calibration
from benchmarks.page import table
from benchmarks.plan_page import write_section
from prefold.plan import Chip, find_chip
from prefold.plan.calibration import AllReduce, Kernel, Kernels
from prefold.plan.cost.workload import layer_weight_bytes

SOURCE = (
    "kernels of vLLM {vllm} and NCCL {nccl}, measured by ai-dynamo/aiconfigurator, commit 095f58a51 (Apache-2.0), SXM"
)
CHIPS = {"a100-80gb": ("0.14.0", "2.27.3"), **dict.fromkeys(("h100", "h200", "b200"), ("0.24.0", "2.29.2"))}
_HEAD = ["chip", "kernel", "rows", "fitted", "median error", "nine in ten"]
_TEXT = """## Kernels

Written by `python -m benchmarks.kernels MEASURED`: what a chip reaches in single kernels, fitted to kernels of vLLM and
NCCL that ai-dynamo/aiconfigurator measured (commit 095f58a51, Apache-2.0; SXM modules). `MEASURED` holds its rows as
CSV: of products `dtype, m, n, k, latency_ms`; of attention `batch_size, isl, step, num_heads, num_key_value_heads,
head_dim, kv_cache_dtype, window_size, latency_ms`; of collectives `op, gpus, values, latency_ms, by`.

- **product**, **decode**, **prefill** (attention): seconds of each, shares of the memory's bandwidth and of peak
  operations, p by which both overlap, and passes over the activations that rounding them takes, or adding up parts;
- **all_reduce**: seconds of each, seconds for each further rank, and the share of the links' bandwidth.

Products of fewer than 2^20 weights are left out. Products of fp8 in blocks are not fitted: measured one by one they
take 60 to 230 us each however small, which is the launch of what a server runs within a graph.

"""
_TYPES = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}
_MS = 1e-3
# Weights of a product: a rank of eight has as many of the smallest matrix of a model of 8B.
_LEAST = 1 << 20
# Least, first and most: of a kernel's seconds, shares, p and passes; of an all-reduce's seconds and share.
_KERNEL = ((1e-7, 5e-6, 1e-3), (0.05, 0.8, 1), (0.05, 0.8, 1), (1, 2, 8), (1e-3, 0.5, 100))
_ALL_REDUCE = ((1e-7, 5e-6, 1e-3), (1e-9, 1e-6, 1e-4), (0.05, 0.6, 1))
# A miss beyond about so much counts less: rows with a kernel that was chosen badly are no property of the chip.
_LARGE = 0.2
Array = NDArray[Any]


@dataclass(frozen=True)
class Fitted:
    """Fitted numbers, with the middle and the ninth tenth of the errors' sizes."""

    values: tuple[float, ...]
    median: float
    ninth: float
    rows: int


def read_rows(folder: Path, kind: str, chip: str) -> list[dict[str, str]]:
    """Return the rows of one kind of kernel on a chip."""
    with (folder / f"{kind}-{chip}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(predict: Callable[[Array], Array], bounds: Sequence[tuple[float, float, float]], seconds: Array) -> Fitted:
    """Return the numbers by which ``predict`` comes nearest to measured seconds; ``bounds``: least, first, most."""
    low, first, high = np.log(np.array(bounds).T)
    found = least_squares(
        lambda logs: np.log(predict(np.exp(logs)) / seconds), first, bounds=(low, high), loss="soft_l1", f_scale=_LARGE
    )
    values = np.exp(found.x)
    errors = np.abs(predict(values) / seconds - 1)
    return Fitted(tuple(map(float, values)), *map(float, np.quantile(errors, (0.5, 0.9))), len(seconds))


def _fit_kernel(moved: Array, computed: Array, activations: Array, ms: Array) -> Fitted:
    """Fit ``Kernel`` to milliseconds, of seconds at full rates."""
    return fit(lambda values: Kernel(*values).seconds(moved, computed, activations), _KERNEL, ms * _MS)


def _columns(rows: Sequence[dict[str, str]], *names: str) -> list[Array]:
    return [np.array([float(row[name]) for row in rows]) for name in names]


def fit_products(rows: Sequence[dict[str, str]], chip: Chip, dtype: str) -> Fitted:
    """Fit a kernel to products of one type."""
    m, n, k, ms = _columns(rows, "m", "n", "k", "latency_ms")
    activations = 2 * m * k / chip.memory_bandwidth
    moved = (n * k * layer_weight_bytes(dtype) + 2 * m * n) / chip.memory_bandwidth + activations
    return _fit_kernel(moved, 2 * m * n * k / chip.peak_of(dtype), activations, ms)


def fit_attention(rows: Sequence[dict[str, str]], chip: Chip, keys: str) -> Fitted:
    """Fit a kernel to attention over the tokens in the column ``keys``: cached ones, or those of a prompt."""
    names = ("batch_size", "isl", keys, "num_heads", "num_key_value_heads", "head_dim", "latency_ms")
    batch, queries, seen, heads, shared, size, ms = _columns(rows, *names)
    outputs = 2 * 2 * batch * queries * heads * size / chip.memory_bandwidth
    moved = 2 * 2 * batch * (seen + 1) * shared * size / chip.memory_bandwidth + outputs
    pairs = seen + 1 if keys == "step" else seen * (seen + 1) / 2
    return _fit_kernel(moved, 4 * batch * heads * size * pairs / chip.peak["bf16"], outputs, ms)


def fit_all_reduce(rows: Sequence[dict[str, str]], chip: Chip) -> Fitted:
    """Fit ``AllReduce``."""
    ranks, values_in, ms = _columns(rows, "gpus", "values", "latency_ms")
    sent = 2 * (ranks - 1) / ranks * 2 * values_in / chip.link_bandwidth
    return fit(lambda values: values[0] + values[1] * (ranks - 1) + sent / values[2], _ALL_REDUCE, ms * _MS)


def fit_chip(folder: Path, name: str) -> dict[str, Fitted]:
    """Return all fits of a chip: products by ``product TYPE``, ``decode``, ``prefill`` and ``all_reduce``."""
    chip, products = find_chip(name), read_rows(folder, "gemm", name)
    found = {}
    for theirs, ours in _TYPES.items():
        if rows := [row for row in products if row["dtype"] == theirs and int(row["n"]) * int(row["k"]) >= _LEAST]:
            found[f"product {ours}"] = fit_products(rows, chip, ours)
    plain = {"kv_cache_dtype": "bfloat16", "window_size": "0"}
    for kind, keys in (("decode", "step"), ("prefill", "isl")):
        rows = [row for row in read_rows(folder, f"{kind}_attention", name) if plain.items() <= row.items()]
        found[kind] = fit_attention(rows, chip, keys)
    reduces = [row for row in read_rows(folder, "collectives", name) if row["op"] == "all_reduce"]
    found["all_reduce"] = fit_all_reduce([row for row in reduces if row["by"] == "vllm_custom"], chip)
    return found


def kernels_of(fits: dict[str, Fitted], name: str, extent: tuple[int, int, int]) -> Kernels:
    """Return a chip's kernels; ``extent``: ranks, tokens and keys that were measured."""
    vllm, nccl = CHIPS[name]
    return Kernels(
        {key.split()[1]: Kernel(*each.values) for key, each in fits.items() if key.startswith("product")},
        Kernel(*fits["decode"].values),
        Kernel(*fits["prefill"].values),
        AllReduce(*fits["all_reduce"].values),
        1.0,
        find_chip(name).generation,
        *extent,
        SOURCE.format(vllm=vllm, nccl=nccl),
    )


def extent(folder: Path, name: str) -> tuple[int, int, int]:
    """Return the most ranks, tokens of a product, and cached tokens that were measured."""
    ranks = max(int(row["gpus"]) for row in read_rows(folder, "collectives", name))
    tokens = max(int(row["m"]) for row in read_rows(folder, "gemm", name))
    decode = read_rows(folder, "decode_attention", name)
    return ranks, tokens, max(int(row["batch_size"]) * (int(row["step"]) + 1) for row in decode)


def main() -> None:
    """Fit every chip, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    folder = parser.parse_args().measured
    fits = {name: fit_chip(folder, name) for name in CHIPS}
    kernels = {name: kernels_of(fits[name], name, extent(folder, name)) for name in CHIPS}
    write_calibration("kernels", {name: asdict(each) for name, each in kernels.items()})
    write_section("kernels", _TEXT + table(_HEAD, list(_rows(fits))))


def _rows(fits: dict[str, dict[str, Fitted]]) -> Iterator[list[str]]:
    for name, found in fits.items():
        for kind, each in found.items():
            figures = [f"{value * 1e6:.2f} us" if value < _MS else f"{value:.2f}" for value in each.values]
            yield [name, kind, f"{each.rows:,}", ", ".join(figures), f"{each.median:.1%}", f"{each.ninth:.0%}"]


if __name__ == "__main__":
    main()
