"""Times that others published of single engines, beside what the plan says of them; nothing is fitted to these."""

from collections.abc import Iterator
from dataclasses import dataclass

from prefold.plan import Estimate, Workload, calibrations_of, find_chip, find_shape, mesh_of
from prefold.plan.calibration import known_kernels, nearest
from prefold.plan.cost.case import Case


@dataclass(frozen=True)
class Published:
    """A measured pass."""

    engine: str
    shape: str
    chip: str
    chips: int
    milliseconds: float
    workload: Workload


def _step(weights: str = "bf16", context: int = 200, batch: int = 1) -> Workload:
    return Workload("decode", batch, context, weights)


def _prompt(tokens: int) -> Workload:
    return Workload("prefill", 1, tokens)


# gpt-fast: its README and its mixtral-moe folder; prompts are short and 200 tokens follow. TensorRT-LLM 0.5: its
# performance.md. Llama-3-8B in 16 bits: XiongjieDai/GPU-Benchmarks-on-LLM-Inference. DGX Spark: llama.cpp's
# benches/dgx-spark.md, Q8_0 as 8 bits.
PUBLISHED = (
    *(
        Published("gpt-fast", "llama2-7b", "a100-80gb", n, ms, _step())
        for n, ms in ((1, 9.53), (2, 5.92), (4, 3.94), (8, 3.04))
    ),
    *(Published("gpt-fast", "llama2-70b", "a100-80gb", n, ms, _step()) for n, ms in ((2, 46.9), (4, 26.3), (8, 16.0))),
    Published("gpt-fast", "llama2-7b", "a100-80gb", 1, 6.43, _step("int8")),
    Published("gpt-fast", "llama2-7b", "a100-80gb", 1, 5.08, _step("int4")),
    Published("gpt-fast", "llama2-70b", "a100-80gb", 1, 52.3, _step("int8")),
    *(Published("gpt-fast", "mixtral-8x7b", "a100-80gb", n, ms, _step()) for n, ms in ((2, 12.7), (8, 4.91))),
    *(Published("TensorRT-LLM 0.5", "llama2-7b", "a100-80gb", 1, ms, _prompt(n)) for n, ms in ((128, 16), (2048, 133))),
    *(
        Published("TensorRT-LLM 0.5", "llama2-70b", "a100-80gb", 4, ms, _prompt(n))
        for n, ms in ((128, 47), (2048, 377))
    ),
    *(
        Published("llama.cpp", "llama3-8b", name, 1, ms, _step())
        for name, ms in (("rtx-4090", 18.4), ("rtx-3090", 21.5))
    ),
    *(
        Published("llama.cpp", "gpt-oss-120b", "dgx-spark", 1, ms, _step("mxfp4", n, b))
        for n, b, ms in ((1, 1, 16.9), (32768, 1, 24.2), (512, 32, 102))
    ),
)


def estimate_of(row: Published) -> Estimate:
    """Return what the plan says of a pass under tensor parallelism."""
    chip = find_chip(row.chip)
    case = Case(find_shape(row.shape), chip, mesh_of(chip, row.chips), row.workload, "1d-ws", "head")
    return Estimate(case, calibrations_of(chip))


def published_rows() -> Iterator[list[str]]:
    """Yield a line for each pass: measured, predicted, by how much, and by whose kernels."""
    for row in PUBLISHED:
        estimate, workload = estimate_of(row), row.workload
        seconds = estimate.calibrated_seconds or estimate.ideal_seconds
        size = f"{workload.phase}, batch {workload.batch}, {workload.context:,} tokens, {workload.weights}"
        name = f"{row.engine}: {row.shape} on {row.chips} {row.chip}, {size}"
        kernels = nearest(find_chip(row.chip), known_kernels())
        basis = ", ".join(kernels.chips) if kernels else "none: ideal"
        milliseconds = seconds * 1e3
        yield [
            name,
            f"{row.milliseconds:g} ms",
            f"{milliseconds:.3g} ms",
            f"{milliseconds / row.milliseconds - 1:+.0%}",
            basis,
        ]
