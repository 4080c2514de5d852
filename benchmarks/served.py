"""Fit what engines add to kernels, for ``serving.py``; kernels come first, by ``python -m benchmarks.kernel_times``.

The rows are served workloads in steady state: ``model_path, system, backend, precision, isl, osl, concurrency, tp_size,
attention_dp_size, moe_ep_size, ttft_ms, tpot_ms``. The result is the ``engines`` of ``plan/calibration.json`` and the
``experts`` of its kernels.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.fitting import write_calibration
from prefold.plan import Estimate, Workload, find_chip, find_shape, mesh_of
from prefold.plan.calibration import Engine, Kernels, known_kernels, nearest
from prefold.plan.cost.case import Case
from prefold.plan.cost.terms import terms_of
from prefold.plan.serving import Service, concurrency_that_fits, kv_type, prefills, serve, tpot_of, ttft_of

ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
# Rows name published checkpoints; each has the shape of a preset.
SHAPES = {
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "meta-llama/Llama-3.1-70B": "llama3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "zhipuai/GLM-5": "glm-5",
}
# Where no type is recorded, 16 bits explain the times.
_TYPES = {"fp8": "fp8", "fp4": "fp4", "bf16": "bf16", "": "bf16"}
_LARGE = 0.15
Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """A served workload, measured, as a case of the plan."""

    model: str
    system: str
    estimate: Estimate
    service: Service
    ttft: float
    tpot: float

    @property
    def generation(self) -> str:
        """The generation of its chip."""
        return self.estimate.case.chip.generation

    @property
    def prefills(self) -> float:
        """Prefills that a step carries."""
        return prefills(self.service, self.concurrency)

    @property
    def concurrency(self) -> int:
        """Requests at a time."""
        return self.estimate.case.workload.batch


@dataclass(frozen=True)
class Parts:
    """Seconds of kernels in a step and in a prefill: all of them, and those of experts' products."""

    step: float
    prefill: float
    step_experts: float
    prefill_experts: float


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a known model under tensor parallelism within a node."""
    with file.open(newline="") as lines:
        return [row for line in csv.DictReader(lines) if (row := _row(line))]


def _row(line: dict[str, str]) -> Row | None:
    alone = float(line["attention_dp_size"] or 1) == 1 and float(line["moe_ep_size"] or 1) <= 1
    ranks, name = int(float(line["tp_size"] or 1)), line["system"].removesuffix("_sxm")
    if not alone or ranks > 8 or line["model_path"] not in SHAPES or line["precision"] not in _TYPES:
        return None
    engine, weights = ENGINES[line["backend"]], _TYPES[line["precision"]]
    service = Service(int(line["isl"]), int(line["osl"]), engine)
    kv = kv_type(engine, weights)
    workload = Workload("decode", int(float(line["concurrency"])), service.context, weights, kv)
    chip, shape = find_chip(name), find_shape(SHAPES[line["model_path"]])
    case = Case(shape, chip, mesh_of(chip, ranks), workload, "1d-ws", "head")
    measured = (float(line[name]) / 1e3 for name in ("ttft_ms", "tpot_ms"))
    return Row(line["model_path"], name, Estimate(case), service, *measured)


def parts_of(row: Row, kernels: Mapping[str, Kernels] | None = None) -> Parts:
    """Return the seconds of a row's kernels; ``kernels``: by generations, those that come with prefold if None."""
    case = row.estimate.case
    known = nearest(case.chip, kernels or known_kernels())
    if known is None:
        raise ValueError(f"{case.chip.name}: no kernels of its family")
    prompt = replace(case.workload, phase="prefill", batch=1, context=row.service.prompt)
    found = []
    for workload in (case.workload, prompt):
        each = replace(case, workload=workload)
        terms = terms_of(each)
        plain, doubled = (replace(known, experts=times).pass_seconds(each, terms) for times in (1.0, 2.0))
        found.append((plain, doubled - plain))
    (step, step_experts), (prefill, prefill_experts) = found
    return Parts(step, prefill, step_experts, prefill_experts)


def fitting(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose requests fit at once; others wait in a queue for most of their time."""
    return [row for row in rows if row.concurrency <= concurrency_that_fits(row.estimate.case)]


@dataclass(frozen=True)
class Fit:
    """Engines, and what experts' products take by the generation of the chip."""

    engines: dict[str, Engine]
    experts: dict[str, float]

    def tpot(self, row: Row, parts: Parts) -> float:
        """Return the predicted seconds from token to token."""
        engine, more = self.engines[row.service.engine], self.experts[row.generation] - 1
        step, prefill = parts.step + more * parts.step_experts, parts.prefill + more * parts.prefill_experts
        return tpot_of(engine, step, prefill, row.prefills)

    def ttft(self, row: Row, parts: Parts) -> float:
        """Return the predicted seconds to the first token."""
        engine, more = self.engines[row.service.engine], self.experts[row.generation] - 1
        prefill = parts.prefill + more * parts.prefill_experts
        return ttft_of(engine, prefill, row.concurrency)


def fit(rows: Sequence[Row], parts: Sequence[Parts]) -> Fit:
    """Fit two numbers of each engine and one of each generation to times between tokens, then two to first tokens."""
    names, generations = sorted(ENGINES.values()), sorted({row.generation for row in rows})
    count = len(names)

    def made(values: Array, first: Array | None = None) -> Fit:
        waits = np.ones(2 * count) if first is None else first
        engines = {
            name: Engine(*map(float, (*values[2 * i : 2 * i + 2], *waits[2 * i : 2 * i + 2])))
            for i, name in enumerate(names)
        }
        return Fit(engines, dict(zip(generations, map(float, values[2 * count :]), strict=True)))

    start = [1.0, 1e-3] * count + [1.0] * len(generations)
    tokens = _solve(start, lambda v: made(v).tpot, [row.tpot for row in rows], rows, parts)
    firsts = _solve([0.1, 0.05] * count, lambda v: made(tokens, v).ttft, [row.ttft for row in rows], rows, parts)
    return made(tokens, firsts)


def _solve(
    start: list[float],
    predictor: Callable[[Array], Callable[[Row, Parts], float]],
    measured: list[float],
    rows: Sequence[Row],
    parts: Sequence[Parts],
) -> Array:
    """Return the positive numbers whose predictions come nearest, by the logarithm of each row's ratio."""

    def misses(logs: Array) -> Array:
        predict = predictor(np.exp(logs))
        predicted = np.array([predict(row, each) for row, each in zip(rows, parts, strict=True)])
        return np.log(predicted / np.array(measured))

    found: Array = np.exp(least_squares(misses, np.log(start), loss="soft_l1", f_scale=_LARGE).x)
    return found


@dataclass(frozen=True)
class Checked:
    """A row with its predictions: seconds between tokens and to the first one."""

    row: Row
    tpot: float
    ttft: float

    @property
    def tpot_error(self) -> float:
        """By what part of it the measured time between tokens is missed."""
        return self.tpot / self.row.tpot - 1

    @property
    def ttft_error(self) -> float:
        """By what part of it the measured time to the first token is missed."""
        return self.ttft / self.row.ttft - 1


def predicted(fitted: Fit, rows: Sequence[Row], parts: Sequence[Parts]) -> list[Checked]:
    """Return rows with what a fit predicts of them."""
    return [Checked(row, fitted.tpot(row, each), fitted.ttft(row, each)) for row, each in zip(rows, parts, strict=True)]


def ideal_share(row: Row) -> float:
    """Return the measured seconds between tokens over the bound that no engine beats."""
    return row.tpot / serve(row.estimate, row.service).ideal_tpot_seconds


def held_out(
    rows: Sequence[Row],
    by: Callable[[Row], str],
    kernels_without: Callable[[str], Mapping[str, Kernels] | None] = lambda _: None,
) -> list[Checked]:
    """Predict the rows of each group by a fit to all others, and by the kernels that are known without the group."""
    parts, found = [parts_of(row) for row in rows], []
    for group in sorted({by(row) for row in rows}):
        inside = [by(row) == group for row in rows]
        kept = [index for index, within in enumerate(inside) if not within]
        left = [row for row, within in zip(rows, inside, strict=True) if within]
        fitted = _with_every_generation(fit([rows[i] for i in kept], [parts[i] for i in kept]), left)
        kernels = kernels_without(group)
        found += predicted(fitted, left, [parts_of(row, kernels) for row in left])
    return found


def _with_every_generation(fitted: Fit, rows: Iterable[Row]) -> Fit:
    """Take the experts of any generation for one that was not fitted."""
    some = next(iter(fitted.experts.values()))
    return replace(fitted, experts={row.generation: some for row in rows} | fitted.experts)


def write(fitted: Fit, source: str) -> None:
    """Write the engines, and the experts of each generation; one without rows takes those of Hopper."""
    engines = {name: asdict(engine) | {"source": source} for name, engine in fitted.engines.items()}
    write_calibration("engines", engines)
    kernels = {name: asdict(each) for name, each in known_kernels().items()}
    for name, each in kernels.items():
        each["experts"] = fitted.experts.get(name, fitted.experts["hopper"])
    write_calibration("kernels", kernels)
