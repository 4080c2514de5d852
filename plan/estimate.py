"""What a forward pass costs in each layout, and which layout to choose.

A time is ideal, from the chip's full rates, or calibrated, by what was fitted to measured times. There is no calibrated
time where nothing was measured, and layouts that have one come before those that have none.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from prefold.plan.calibration import Calibration, calibrations_of
from prefold.plan.chip.hardware import Chip, Mesh
from prefold.plan.cost.attention import shardings
from prefold.plan.cost.case import Case, require_phase
from prefold.plan.cost.fold import Fold
from prefold.plan.cost.layouts import distinct
from prefold.plan.cost.memory import Memory, memory_of
from prefold.plan.cost.terms import Terms, ffn_bytes, flops, terms_of
from prefold.plan.cost.workload import Workload
from prefold.plan.errors import Infeasible
from prefold.plan.model.shape import Shape

# About the median error of a calibrated time.
_CLOSE = 0.05


@dataclass(frozen=True)
class Estimate:
    """The figures of one layout; the first of ``calibrations`` that holds for it is taken."""

    case: Case
    calibrations: tuple[Calibration, ...] = ()

    @cached_property
    def terms(self) -> Terms:
        """The ideal times, each by itself."""
        return terms_of(self.case)

    @cached_property
    def memory(self) -> Memory:
        """What a chip holds."""
        return memory_of(self.case)

    @property
    def ideal_seconds(self) -> float:
        """Seconds per pass at full rates, if everything overlaps: no chip is faster."""
        return self.terms.lower

    @property
    def ideal_sum_seconds(self) -> float:
        """Seconds per pass at full rates, if nothing overlaps."""
        return self.terms.upper

    @cached_property
    def calibrated_seconds(self) -> float | None:
        """Seconds per pass that can be expected; None where no calibration holds."""
        return self.calibration.pass_seconds(self.case, self.terms) if self.calibration else None

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of its time."""
        return next((each for each in self.calibrations if not each.beyond(self.case)), None)

    @property
    def uncalibrated(self) -> str:
        """The reason why there is no calibrated time; empty where there is one."""
        if self.calibration:
            return ""
        if not self.calibrations:
            return f"no measurements of {self.case.chip.name}"
        return "; ".join(each.beyond(self.case) for each in self.calibrations)

    @property
    def basis(self) -> str:
        """The time that MFU, cost and savings are calculated from: ``calibrated`` if there is one, else ``ideal``."""
        return "ideal" if self.calibrated_seconds is None else "calibrated"

    @property
    def seconds(self) -> float:
        """Seconds per pass of the basis."""
        return self.ideal_seconds if self.calibrated_seconds is None else self.calibrated_seconds

    @property
    def rank(self) -> float:
        """What layouts are compared by: calibrated seconds, or the sum, since a maximum hides all other terms."""
        return self.ideal_sum_seconds if self.calibrated_seconds is None else self.calibrated_seconds

    @property
    def mfu(self) -> float:
        """Share of peak operations that go into 2 for each weight and token, by the basis (section 2)."""
        return mfu(self.case, self.seconds)

    @property
    def chip_seconds_per_token(self) -> float:
        """Cost of a token, by the basis (section 4.4)."""
        return self.case.mesh.chips * self.seconds / self.case.workload.tokens

    def as_json(self) -> dict[str, Any]:
        """Return the figures by their names: times are seconds per forward pass."""
        return {
            "ffn_layout": self.case.layout,
            "attention_layout": self.case.sharding,
            "ideal_seconds": self.ideal_seconds,
            "ideal_sum_seconds": self.ideal_sum_seconds,
            "calibrated_seconds": self.calibrated_seconds,
            "uncalibrated": self.uncalibrated or None,
            "basis": self.basis,
            "mfu": self.mfu,
            "chip_seconds_per_token": self.chip_seconds_per_token,
            "memory_bytes_per_chip": self.memory.total,
            "memory": self.memory.as_json(),
            "missing_bytes_per_chip": self.memory.missing,
            "fits": self.memory.fits,
            "bound": self.terms.bound,
            "terms": asdict(self.terms),
        }


def mfu(case: Case, seconds: float) -> float:
    """Return the share of peak that a pass of so many seconds uses (section 2).

    The weights are those of the model's name, or all that tokens are multiplied by; a folded model's are its source's,
    so that both are compared by the tokens that they bring.
    """
    shape, workload = case.shape, case.workload
    spared = shape.head_weights * (workload.tokens - workload.logits)
    named = 2 * (shape.nominal * workload.tokens - spared) if shape.nominal else 0
    operations = named or flops(replace(case, fold=None))
    return operations / (case.mesh.chips * case.chip.peak_of(case.workload.compute) * seconds)


@dataclass(frozen=True)
class Plan:
    """The possible layouts of a pass, the cheapest first, and why the others are refused."""

    estimates: list[Estimate]
    refused: list[str]
    chosen: Estimate

    @property
    def fastest(self) -> Estimate:
        """The cheapest that fits, however weights are stored."""
        return next((each for each in self.estimates if each.memory.fits), self.chosen)


def plan_layouts(
    shape: Shape,
    chip: Chip,
    mesh: Mesh,
    workload: Workload,
    *,
    fold: Fold | None = None,
    calibrations: tuple[Calibration, ...] = (),
) -> Plan:
    """Estimate every layout of a pass and choose one; ``Infeasible`` where none can share the batch out.

    ``calibrations`` are those that are known of the chip if there are none.
    """
    require_phase(shape, workload)
    calibrations = calibrations or calibrations_of(chip)
    found, refused = list[Estimate](), list[str]()
    for layout in distinct(mesh):
        for sharding in shardings(layout, mesh):
            case = Case(shape, chip, mesh, workload, layout, sharding, fold)
            try:
                case.require()
            except Infeasible as reason:
                refused.append(str(reason))
            else:
                found.append(Estimate(case, calibrations))
    found.sort(key=lambda each: (each.calibration is None, each.rank))
    return Plan(found, refused, choose(found))


def choose(estimates: list[Estimate]) -> Estimate:
    """Return the layout to take, of those that fit; if none does, the one that is the least too large.

    Those with a calibrated time come before all others. It is the cheapest, of each layout with the cheaper sharding of
    attention. Layouts that are closer to it than such an estimate can tell apart are compared as the paper does, by
    what the two matmuls of an FFN send (section 3.2).

    2D weight-stationary and all weight-gathered layouts store weights in the same places, so that a prefill and the
    decoding after it may differ (section 3.2.3), and on a torus the paper decodes in 2D always (section 4.1). 1D stores
    weights otherwise. It is taken where a switch joins the chips, where they lie along one axis, which makes it the
    same as 2D, and where nothing else fits.
    """
    if not estimates:
        raise Infeasible("no layout can share this batch out")
    fitting = [each for each in estimates if each.memory.fits]
    if not fitting:
        return min(estimates, key=lambda each: each.memory.missing)
    ranked = _ranked(fitting)
    best = {each.case.layout: each for each in reversed(ranked)}.values()
    close = [each for each in best if each.rank <= ranked[0].rank * (1 + _CLOSE)]
    return min(close, key=lambda each: (ffn_bytes(each.case), each.rank))


def _ranked(fitting: list[Estimate]) -> list[Estimate]:
    """Return those that are compared, the cheapest first."""
    known = [each for each in fitting if each.calibration] or fitting
    stored = [each for each in known if _keeps_storage(each.case)] or known
    return sorted(stored, key=lambda each: each.rank)


def _keeps_storage(case: Case) -> bool:
    return case.layout != "1d-ws" or not case.is_torus or "2d-ws" not in distinct(case.mesh)
