"""The rows that Pope et al. 2022 print, and the passes that each of them is about."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fitting import Measurement
from prefold.plan.chip.chips import find_chip
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.attention import Sharding
from prefold.plan.cost.case import Case
from prefold.plan.cost.layouts import Layout
from prefold.plan.cost.terms import terms_of
from prefold.plan.cost.workload import Phase, Workload
from prefold.plan.estimate import mfu
from prefold.plan.model.shape import Shape, find_shape

DATA = Path(__file__).resolve().parent.parent / "tests" / "plan" / "data"
TABLES = DATA / "pope2022_tables.csv"
FIGURES = DATA / "pope2022_figures.csv"
LAYOUTS: dict[str, Layout] = {
    "WS 1D": "1d-ws",
    "WS 2D": "2d-ws",
    "WG X": "wg-x",
    "WG XY": "wg-xy",
    "WG XYZ": "wg-xyz",
    "TP16": "1d-ws",
    "TP32": "1d-ws",
    "PP3/TP8": "1d-ws",
    "": "2d-ws",
}
WEIGHTS = {"bfloat16": "bf16", "int8": "int8", "": "bf16"}
# The released code's meshes (reference, section 2).
MESHES = {8: (2, 2, 2), 16: (2, 4, 2), 32: (4, 2, 4), 64: (4, 4, 4), 128: (8, 4, 4), 256: (4, 8, 8)}
# Of one step at context 2048, which the text gives without its table's columns.
_STEP_CHIPS = 64
_NOT_TIMES = {"max_context", "offline_total", "total_as_printed", "chat_total_64new_1920cached_64out"}


@dataclass(frozen=True)
class Row:
    """A printed row: what ran, on what, and what was measured.

    Attributes:
        table: that it is in.
        name: of the row.
        phase: as it is printed.
        batch: sequences.
        tokens: that each of them brings, and that are made for it.
        chips: that it ran on.
        cases: the passes: how many of which.
        printed: the layouts of the FFN and of attention, and what the weights are stored in, as they are printed.
        seconds: measured, of all passes.
        mfu: printed, percent; None where it is not.
    """

    table: str
    name: str
    phase: str
    batch: int
    tokens: tuple[int, int]
    chips: int
    cases: tuple[tuple[int, Case], ...]
    printed: tuple[str, str, str]
    seconds: float
    mfu: float | None

    @property
    def measurement(self) -> Measurement:
        """What a calibration is fitted to, or checked by."""
        return Measurement(self.name, tuple((count, terms_of(case)) for count, case in self.cases), self.seconds)

    @property
    def mfu_percent(self) -> float:
        """MFU of the measured time, percent, of all tokens of all passes."""
        first = self.cases[0][1]
        per_token = 100 * mfu(first, self.seconds) / first.workload.tokens
        return per_token * sum(count * case.workload.tokens for count, case in self.cases)

    @property
    def is_fitted(self) -> bool:
        """Whether factors are fitted to it: of table D.2, what ran in a layout of the model, and no sum of two others.

        Three pipelined stages are no layout of this model, and PaLM's total repeats its prefill and decode.
        """
        return self.table == "D.2" and self.is_modelled and not (self.phase == "total" and "PaLM" in self.name)

    @property
    def is_modelled(self) -> bool:
        """Whether this model has the layout that it ran in."""
        return not self.printed[0].startswith("PP")


def shape_of(model: str, chips: int, layout: Layout) -> Shape:
    """Return the shape that ran: the code pads PaLM 540B's heads to the chips, for 2D to no more than 128."""
    if "MT-NLG" in model:
        return find_shape("mt-nlg-530b")
    name = next(name for size, name in (("540B", "palm-540b"), ("62B", "palm-62b"), ("8B", "palm-8b")) if size in model)
    shape = find_shape(name)
    if name != "palm-540b":
        return shape
    most = 128 if layout == "2d-ws" else chips
    return replace(shape, num_attention_heads=max(64, min(chips, most)))


def read_rows(path: Path = TABLES) -> list[Row]:
    """Return the rows that have a measured time and say all that a pass needs."""
    return [row for row in map(_row, lines(path)) if row]


def lines(path: Path = TABLES) -> list[dict[str, str]]:
    """Return all lines of a file of tables."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row(line: dict[str, str]) -> Row | None:
    if line["phase"] in _NOT_TIMES or not (line["latency_s"] and line["batch"]):
        return None
    chips = int(line["chips"] or _STEP_CHIPS)
    layout = LAYOUTS[line["ffn_layout"]]
    return Row(
        table=line["table"],
        name=" ".join(filter(None, [line["model"], line["phase"], f"B={line['batch']}", line["ffn_layout"]])),
        phase=line["phase"],
        batch=int(line["batch"]),
        tokens=(int(line["seq_in"]), int(line["seq_out"])),
        chips=chips,
        cases=tuple(_cases(line, chips, layout)),
        printed=(line["ffn_layout"], line["attn_layout"], line["weight_format"]),
        seconds=float(line["latency_s"]),
        mfu=float(line["mfu_percent"]) if line["mfu_percent"] else None,
    )


def _cases(line: dict[str, str], chips: int, layout: Layout) -> Iterator[tuple[int, Case]]:
    """Yield a prefill, decode steps, or one after the other."""
    read, made = int(line["seq_in"]), int(line["seq_out"])
    if line["phase"] in ("prefill", "total"):
        yield 1, _case(line, chips, layout, "prefill", read)
    if line["phase"] == "decode_per_token":
        yield 1, _case(line, chips, layout, "decode", read)
    elif line["phase"] in ("decode", "total"):
        yield made, _case(line, chips, layout, "decode", read + made // 2)


def _case(line: dict[str, str], chips: int, layout: Layout, phase: Phase, context: int) -> Case:
    batch, weights = int(line["batch"]), WEIGHTS[line["weight_format"]]
    on_gpu = "A100" in line["model"]
    return Case(
        shape=shape_of(line["model"], chips, layout),
        chip=find_chip("a100-80gb" if on_gpu else "tpu-v4"),
        mesh=Mesh(1, chips, 1) if on_gpu else Mesh(*MESHES[chips]),
        workload=Workload(phase, batch, context, weights=weights, head=weights, all_logits=True),
        layout=layout,
        sharding=_sharding(line, phase),
    )


def _sharding(line: dict[str, str], phase: Phase) -> Sharding:
    """Return what is printed; appendix D prints none, its code runs no all-to-all, and section 4.4 is about table 2."""
    printed = line["attn_layout"].split(" ")[0]
    if printed:
        return "batch" if printed == "batch" else "head"
    return "batch" if phase == "decode" and line["table"].startswith("text") else "head"
