"""Points of the figures of Pope et al. 2022: volumes that are calculated, and times that were measured."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path

from benchmarks.fitting import Measurement
from benchmarks.pope2022_rows import DATA, FIGURES, LAYOUTS, MESHES, shape_of
from prefold.plan.chip.chips import find_chip
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.attention import Sharding
from prefold.plan.cost.case import Case
from prefold.plan.cost.layouts import collectives, ffn, volume
from prefold.plan.cost.terms import terms_of
from prefold.plan.cost.workload import Phase, Workload
from prefold.plan.estimate import mfu
from prefold.plan.model.shape import Shape

READ_OFF = DATA / "pope2022_read_off.csv"
# What figure 3 is drawn for: bf16, and E and F of an FFN without a gate.
CUBE = Mesh(4, 4, 4)
E, F = 16384, 65536
# Figure 6 is of steps at this context.
_CONTEXT = 2048
_BATCH = 512


@dataclass(frozen=True)
class Point:
    """A point of figure 3: bytes per chip and layer, as it is drawn and by the formula."""

    series: str
    tokens: float
    drawn: float
    calculated: float

    @property
    def error(self) -> float:
        """By what part of it the drawn one is missed."""
        return self.calculated / self.drawn - 1


def figure_3(path: Path = FIGURES) -> list[Point]:
    """Return its points."""
    return [_volume(line) for line in _lines(path) if line["figure"] == "Figure 3"]


def figure_6(path: Path = FIGURES) -> list[Measurement]:
    """Return its points: decode steps of PaLM 540B on more and more chips."""
    return [_step(line) for line in _lines(path) if line["figure"] == "Figure 6"]


def read_off(path: Path = READ_OFF) -> Iterator[tuple[str, Measurement]]:
    """Yield where each of the other points is from, and the point."""
    for line in _lines(path):
        where = line["figure"] if line["figure"].startswith("D") else f"figure {line['figure']}"
        yield where, _measured(line)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _volume(line: dict[str, str]) -> Point:
    # Points lie on powers of two; their pixels only nearly do.
    tokens = 2.0 ** round(log2(float(line["x"])))
    sent = collectives(LAYOUTS[line["series"]], CUBE, tokens, E, ffn(E, F))
    return Point(line["series"], tokens, float(line["y"]) * 1e9, 2 * volume(sent))


def _step(line: dict[str, str]) -> Measurement:
    layout = LAYOUTS["WS 1D" if line["series"].endswith("1D") else "WS 2D"]
    chips = round(float(line["x"]))
    shape = shape_of("PaLM 540B", chips, layout)
    workload = Workload("decode", _BATCH, _CONTEXT)
    case = Case(shape, find_chip("tpu-v4"), Mesh(*MESHES[chips]), workload, layout, "batch")
    return Measurement(f"{line['series']}, {chips} chips", ((1, terms_of(case)),), float(line["y"]) / 1e3)


def _measured(line: dict[str, str]) -> Measurement:
    cases = list(_cases(line))
    passes = tuple((count, terms_of(case)) for count, case in cases)
    name = " ".join([line["phase"], f"B={line['batch']}", f"L={line['context']}", line["ffn_layout"], line["variant"]])
    return Measurement(name.strip(), passes, _seconds(line, cases))


def _seconds(line: dict[str, str], cases: list[tuple[int, Case]]) -> float:
    """Seconds of a point, if need be from its MFU; one second of it at that rate would be a share of its tokens."""
    value = float(line["value"])
    if line["name"] == "ms":
        return value / 1e3
    return sum(count * mfu(case, 1) for count, case in cases) / (value / 100)


def _cases(line: dict[str, str]) -> Iterator[tuple[int, Case]]:
    context, steps = int(line["context"]), int(line["steps"])
    if line["phase"] in ("prefill", "total"):
        yield 1, _case(line, "prefill", context)
    if steps:
        yield steps, _case(line, "decode", context + steps // 2)


def _case(line: dict[str, str], phase: Phase, context: int) -> Case:
    workload = Workload(phase, int(line["batch"]), context, all_logits=True)
    sharding: Sharding = "batch" if line["attn_layout"] == "batch" else "head"
    return Case(_variant(line), find_chip("tpu-v4"), CUBE, workload, LAYOUTS[line["ffn_layout"]], sharding)


def _variant(line: dict[str, str]) -> Shape:
    """PaLM 540B; figure 8 has 8 of its layers without embeddings, also with multihead attention of half the width."""
    shape = shape_of("PaLM 540B", CUBE.chips, "2d-ws")
    layers = int(line["layers"])
    if layers < shape.num_layers:
        shape = replace(shape, num_layers=layers, vocab_size=0)
    return multihead(shape) if line["variant"] == "multihead" else shape


def multihead(shape: Shape) -> Shape:
    """Return the multihead variant that table 1 and figure 8 compare with: as many key-value heads, half as wide."""
    return replace(shape, num_key_value_heads=shape.num_attention_heads, head_dim=shape.head_dim // 2)
