"""What the model says of each published figure of Pope et al. 2022, beside what the paper says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fitting import Measurement, fit
from benchmarks.pope2022_figures import CUBE, E, F, figure_6, multihead, read_off
from benchmarks.pope2022_optima import crossover
from benchmarks.pope2022_rows import LAYOUTS, TABLES, Row, lines, shape_of
from prefold.plan.calibration import Factors
from prefold.plan.chip.chips import find_chip
from prefold.plan.cost.layouts import Layout, ffn
from prefold.plan.cost.memory import max_context
from prefold.plan.cost.terms import terms_of
from prefold.plan.estimate import Estimate, plan_layouts

FITTED = {"tpu-v4": "64 TPU v4", "a100-80gb": "FasterTransformer on 16 and 32 A100"}
# Fewest and most chips of the paper's times that predictions are compared with.
CHECKED = {"tpu-v4": (8, 256), "a100-80gb": (16, 32)}
STEPS: list[tuple[Layout, Layout, float]] = [
    ("2d-ws", "wg-x", F / 4),
    ("wg-x", "wg-xy", F),
    ("wg-xy", "wg-xyz", 12 * F),
]


@dataclass(frozen=True)
class Limit:
    """A row of table 1: the longest context, as printed and by the formula."""

    name: str
    printed: float
    calculated: float

    @property
    def error(self) -> float:
        """By what part of it the printed one is missed."""
        return self.calculated / self.printed - 1


@dataclass(frozen=True)
class Choice:
    """A row of table 2: the layouts that the paper chose, and those that the model does."""

    name: str
    printed: tuple[str, str]
    chosen: tuple[str, str]


@dataclass(frozen=True)
class Crossover:
    """Tokens from which one layout sends less than another, expected and by the formula."""

    first: Layout
    second: Layout
    expected: float
    calculated: float


def context_limits(path: Path = TABLES) -> list[Limit]:
    """Return the rows of table 1."""
    found = []
    for line in lines(path):
        if line["phase"] != "max_context":
            continue
        shape = shape_of(line["model"], int(line["chips"]), "2d-ws")
        shape = multihead(shape) if "multihead" in line["model"] else shape
        sharding = "batch" if line["attn_layout"] == "batch" else "head"
        tokens = max_context(shape, find_chip("tpu-v4"), CUBE, int(line["batch"]), sharding)
        name = f"{line['model']}, {line['attn_layout']}, B={line['batch']}"
        found.append(Limit(name, float(line["seq_in"]), tokens))
    return found


def crossovers() -> list[Crossover]:
    """Return where weight-gathered layouts begin to send less, on 4x4x4."""
    part = ffn(E, F)
    return [Crossover(one, two, tokens, crossover(one, two, CUBE, E, part)) for one, two, tokens in STEPS]


def choices(rows: Sequence[Row], *factors: Factors) -> list[Choice]:
    """Return what is chosen for every row that prints both layouts."""
    return [_choice(row, *factors) for row in rows if row.printed[0] and row.printed[1]]


def _choice(row: Row, *factors: Factors) -> Choice:
    case = row.cases[0][1]
    chosen: Estimate = plan_layouts(case.shape, case.chip, case.mesh, case.workload, calibrations=factors).chosen
    return Choice(row.name, (LAYOUTS[row.printed[0]], case.sharding), (chosen.case.layout, chosen.case.sharding))


def fitted_rows(rows: Sequence[Row], chip: str) -> list[Measurement]:
    """Return the rows of a chip that its factors are fitted to."""
    return [row.measurement for row in rows if row.is_fitted and row.cases[0][1].chip.name == chip]


def fit_chip(rows: Sequence[Row], chip: str) -> Factors:
    """Fit a chip's factors to table D.2, and to nothing else."""
    used = fitted_rows(rows, chip)
    factors = fit(used, f"Pope et al. 2022, table D.2: {len(used)} times of {FITTED[chip]}")
    return replace(factors, chips=CHECKED[chip])


def serial_cost(rows: Sequence[Row], factors: Factors) -> float:
    """Return by what part a step is longer with serial attention and FFN; section 4.3 has 14 % for this one."""
    row = next(row for row in rows if (row.table, row.phase, row.batch) == ("2", "decode", 512))
    case = row.cases[0][1]
    serial = replace(case, shape=replace(case.shape, parallel=False))
    return factors.seconds(terms_of(serial)) / factors.seconds(terms_of(case)) - 1


def held_out(rows: Sequence[Row]) -> Iterator[tuple[str, Measurement]]:
    """Yield what was measured on TPU v4 and not fitted to; totals of rows that were are left out too."""
    for row in rows:
        if row.table != "D.2":
            yield (f"table {row.table}" if row.table[0].isdigit() else row.table), row.measurement
    yield from (("figure 6", point) for point in figure_6())
    yield from read_off()
