"""Part 5: the chip's rates as ``plan --hardware this`` measures them, and its predictions beside what was measured."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig

from benchmarks.gpu.fold import BATCHES, PROMPT, SHAPES
from benchmarks.gpu.timed import Found
from benchmarks.page import table
from prefold.plan import Fold, Workload, mesh_of, plan_layouts
from prefold.plan.model.config import shape_from_config
from prefold.plan.this_machine import this_chip


def measure(device: str, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rates of the accelerator, or of this machine, and then a prediction of each step of part 2."""
    del device
    chip, factors = this_chip(refresh=not quick)
    yield {"kind": "rates", "chip": asdict(chip), "factors": asdict(factors)}
    for shape in SHAPES[:1] if quick else SHAPES:
        config = AutoConfig.for_model(shape.model_type, **shape.settings).to_dict()
        model = shape_from_config(config, gated=shape.model_type == "llama")
        for batch in BATCHES:
            for name, fold in (("source", None), ("folded", Fold())):
                workload = Workload("decode", batch, PROMPT)
                chosen = plan_layouts(
                    model, chip, mesh_of(chip, 1), workload, fold=fold, calibrations=(factors,)
                ).chosen
                predicted = chosen.calibrated_seconds or chosen.ideal_seconds
                yield {"kind": "step", "shape": shape.name, "batch": batch, "model": name, "predicted": predicted}


def render(found: Found) -> str:
    """Write the rates, and predictions beside what part 2 measured."""
    rates, *steps = found["plan"]
    chip = rates["chip"]
    told = [
        f"Memory {chip['memory_bandwidth'] / 1e9:,.0f} GB/s",
        *(f"{name} {each / 1e12:,.0f} TFLOP/s" for name, each in chip["peak"].items()),
        *(f"{name} {chip[f'{name}_bandwidth'] / 1e9:.1f} GB/s" for name in ("host", "disk")),
        f"{rates['factors']['memory']:.0%} of the bandwidth in layers",
        f"{rates['factors']['step'] * 1e3:.2f} ms a step and {rates['factors']['layer'] * 1e3:.3f} a layer.",
    ]
    measured = {(each["shape"], each["batch"]): each["seconds"] for each in found.get("fold", [])}
    rows = [_row(each, measured.get((each["shape"], each["batch"]), {})) for each in steps]
    return "\n\n".join([", ".join(told), table(["", "batch", "eager, ms", "predicted", "error"], rows)])


def _row(each: dict[str, Any], measured: dict[str, float]) -> list[str]:
    real = measured.get(f"{each['model']}, eager")
    cells = [f"{real * 1e3:.3f}", f"{real / each['predicted'] - 1:+.0%}"] if real else ["", ""]
    return [
        f"{each['shape']}, {each['model']}",
        f"{each['batch']}",
        cells[0],
        f"{each['predicted'] * 1e3:.3f}",
        cells[1],
    ]
