"""Fit what a chip reaches in single kernels: ``python -m benchmarks.kernel_times MEASURED``.

MEASURED has ``gemm-CHIP.csv``, ``decode_attention-CHIP.csv``, ``prefill_attention-CHIP.csv`` and
``collectives-CHIP.csv``, with the columns that ``docs/plan-validation.md`` names. The result is the ``kernels`` of
``plan/calibration.json``. Each fit is the least squares of the logarithms of predicted over measured seconds, of which
large misses count less (``soft_l1``).
"""

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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

SOURCE = "kernels of vLLM {} and NCCL {}, measured by ai-dynamo/aiconfigurator, commit 095f58a51 (Apache-2.0), SXM"
VERSIONS = {"a100-80gb": ("0.14.0", "2.27.3"), **dict.fromkeys(("h100", "h200", "b200"), ("0.24.0", "2.29.2"))}
_KINDS = ("gemm", "decode_attention", "collectives")
_HEAD = ["chips", "kernel", "rows", "fitted", "median error", "nine in ten"]
_TEXT = """## Kernels

Written by `python -m benchmarks.kernel_times MEASURED`: what a chip reaches in single kernels, fitted to kernels of
vLLM and NCCL that ai-dynamo/aiconfigurator measured (commit 095f58a51, Apache-2.0; SXM modules). `MEASURED` holds its
rows as CSV: of products `dtype, m, n, k, latency_ms`; of attention `batch_size, isl, step, num_heads,
num_key_value_heads, head_dim, kv_cache_dtype, window_size, latency_ms`; of collectives `op, gpus, values, latency_ms,
by`.

- **product**, **decode**, **prefill** (attention): seconds of each, shares of the memory's bandwidth and of peak
  operations, p by which both overlap, and passes over the activations that rounding them takes, or adding up parts;
- **all_reduce**: seconds of each, seconds for each further rank, and the share of the links' bandwidth.

Chips of one generation are fitted together: they have the same cores. Products of fewer than 2^20 weights are left
out. Products of fp8 in blocks are not fitted: measured one by one they take 60 to 230 us each however small, which is
the launch of what a server runs within a graph. Engines round activations within the kernel before, so that a pass
counts the start of a 16-bit product for one of 8 and 4 bits, too.

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


def _products(rows: Sequence[dict[str, str]], chip: Chip, dtype: str) -> tuple[Array, ...]:
    """Return the seconds of bytes, operations and activations at full rates, and measured milliseconds."""
    m, n, k, ms = _columns(rows, "m", "n", "k", "latency_ms")
    activations = 2 * m * k / chip.memory_bandwidth
    moved = (n * k * layer_weight_bytes(dtype) + 2 * m * n) / chip.memory_bandwidth + activations
    return moved, 2 * m * n * k / chip.peak_of(dtype), activations, ms


def _attention(rows: Sequence[dict[str, str]], chip: Chip, keys: str) -> tuple[Array, ...]:
    """Return the same of attention over the tokens in the column ``keys``: cached ones, or those of a prompt."""
    names = ("batch_size", "isl", keys, "num_heads", "num_key_value_heads", "head_dim", "latency_ms")
    batch, queries, seen, heads, shared, size, ms = _columns(rows, *names)
    outputs = 2 * 2 * batch * queries * heads * size / chip.memory_bandwidth
    moved = 2 * 2 * batch * (seen + 1) * shared * size / chip.memory_bandwidth + outputs
    pairs = seen + 1 if keys == "step" else seen * (seen + 1) / 2
    return moved, 4 * batch * heads * size * pairs / chip.peak["bf16"], outputs, ms


def _reduces(rows: Sequence[dict[str, str]], chip: Chip) -> tuple[Array, ...]:
    """Return ranks, seconds of what each sends at full rate, and measured milliseconds."""
    ranks, values, ms = _columns(rows, "gpus", "values", "latency_ms")
    return ranks, 2 * (ranks - 1) / ranks * 2 * values / chip.link_bandwidth, ms


def _pooled(parts: Iterable[tuple[Array, ...]]) -> list[Array]:
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def fit_generation(folder: Path, names: Sequence[str]) -> dict[str, Fitted]:
    """Fit chips of one generation together: products by ``product TYPE``, ``decode``, ``prefill``, ``all_reduce``."""
    chips = [(find_chip(name), name) for name in names]
    products = [(chip, read_rows(folder, "gemm", name)) for chip, name in chips]
    found = {}
    for theirs, ours in _TYPES.items():
        parts = [_products(rows, chip, ours) for chip, all_rows in products if (rows := _of_type(all_rows, theirs))]
        if parts:
            found[f"product {ours}"] = _fit_kernel(*_pooled(parts))
    for kind, keys in (("decode", "step"), ("prefill", "isl")):
        parts = [_attention(_plain(read_rows(folder, f"{kind}_attention", name)), chip, keys) for chip, name in chips]
        found[kind] = _fit_kernel(*_pooled(parts))
    reduces = [_reduces(_in_graphs(read_rows(folder, "collectives", name)), chip) for chip, name in chips]
    found["all_reduce"] = _fit_all_reduce(*_pooled(reduces))
    return found


def _of_type(rows: Sequence[dict[str, str]], dtype: str) -> list[dict[str, str]]:
    return [row for row in rows if row["dtype"] == dtype and int(row["n"]) * int(row["k"]) >= _LEAST]


def _plain(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if (row["kv_cache_dtype"], row["window_size"]) == ("bfloat16", "0")]


def _in_graphs(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if (row["op"], row["by"]) == ("all_reduce", "vllm_custom")]


def _fit_all_reduce(ranks: Array, sent: Array, ms: Array) -> Fitted:
    return fit(lambda values: values[0] + values[1] * (ranks - 1) + sent / values[2], _ALL_REDUCE, ms * _MS)


def kernels_of(folder: Path, names: Sequence[str], fits: dict[str, Fitted]) -> Kernels:
    """Return the kernels of chips of one generation.

    Engines round activations within the kernel before a product, so that one of 8 bits starts as one of 16 does.
    """
    start = fits["product bf16"].values[0]
    products = {key.split()[1]: Kernel(*each.values) for key, each in fits.items() if key.startswith("product")}
    return Kernels(
        {dtype: replace(each, start=min(start, each.start)) for dtype, each in products.items()},
        Kernel(*fits["decode"].values),
        Kernel(*fits["prefill"].values),
        AllReduce(*fits["all_reduce"].values),
        1.0,
        tuple(names),
        *_extent(folder, names),
        SOURCE.format(*VERSIONS[names[0]]),
    )


def _extent(folder: Path, names: Sequence[str]) -> tuple[int, int, int]:
    """Return the most ranks, tokens of a product, and cached tokens that were measured."""
    rows = {kind: [row for name in names for row in read_rows(folder, kind, name)] for kind in _KINDS}
    ranks = max(int(row["gpus"]) for row in rows["collectives"])
    keys = max(int(row["batch_size"]) * (int(row["step"]) + 1) for row in rows["decode_attention"])
    return ranks, max(int(row["m"]) for row in rows["gemm"]), keys


def by_generation(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the chips of each generation."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(find_chip(name).generation, []).append(name)
    return found


def fit_kernels(folder: Path, names: Iterable[str]) -> dict[str, Kernels]:
    """Return the kernels of the generations that some chips are of."""
    groups = by_generation(names)
    return {key: kernels_of(folder, group, fit_generation(folder, group)) for key, group in groups.items()}


def main() -> None:
    """Fit every chip, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    folder = parser.parse_args().measured
    groups = by_generation(VERSIONS)
    fits = {key: fit_generation(folder, names) for key, names in groups.items()}
    kernels = {key: asdict(kernels_of(folder, names, fits[key])) for key, names in groups.items()}
    write_calibration("kernels", kernels)
    write_section("kernels", _TEXT + table(_HEAD, list(_rows(groups, fits))))


def _rows(groups: dict[str, list[str]], fits: dict[str, dict[str, Fitted]]) -> Iterator[list[str]]:
    for key, found in fits.items():
        for kind, each in found.items():
            figures = [f"{value * 1e6:.2f} us" if value < _MS else f"{value:.2f}" for value in each.values]
            errors = [f"{each.median:.1%}", f"{each.ninth:.0%}"]
            yield [", ".join(groups[key]), kind, f"{each.rows:,}", ", ".join(figures), *errors]


if __name__ == "__main__":
    main()
