"""Plans for several numbers of chips and several batches, and which of them are worth a look (figure 1)."""

from dataclasses import dataclass, replace
from itertools import product
from math import inf

from prefold.common.errors import UsageError
from prefold.common.units import spell_seconds
from prefold.plan.calibration import Calibration
from prefold.plan.chip.hardware import Chip, Mesh, mesh_of
from prefold.plan.cost.workload import Workload, bytes_of
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, plan_layouts
from prefold.plan.model.shape import Shape
from prefold.plan.serving import Service, Serving, serve

LARGEST = 4096
_BEHIND_A_SWITCH = (1, 2, 4, 8)


@dataclass(frozen=True)
class Space:
    """Meshes, batches and types among which a plan is looked for.

    Attributes:
        workload: the pass, but for its batch.
        types: of weights and KV cache; those of the workload if empty.
    """

    shape: Shape
    chip: Chip
    workload: Workload
    meshes: tuple[Mesh, ...]
    batches: tuple[int, ...]
    calibrations: tuple[Calibration, ...] = ()
    types: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a context that the model has too few positions for."""
        step = self.workload
        if had := self.shape.too_few_positions(step.positions):
            raise UsageError(f"context {step.context:,}: {had}, and this {step.phase} needs {step.positions:,}")

    def points(self) -> list[Estimate]:
        """Return the layout to take for each mesh, batch and pair of types, whether it fits or not."""
        types = self.types or ((self.workload.weights, self.workload.kv),)
        return [
            self._chosen(mesh, replace(self.workload, batch=batch, weights=weights, kv=kv))
            for mesh, batch, (weights, kv) in product(self.meshes, self.batches, types)
        ]

    def _chosen(self, mesh: Mesh, workload: Workload) -> Estimate:
        return plan_layouts(self.shape, self.chip, mesh, workload, calibrations=self.calibrations).chosen

    def around(self, found: Estimate) -> "Space":
        """Return the mesh and the types of an estimate with its batch and all others."""
        workload = found.case.workload
        tried = batches(workload.branches, workload.batch)
        return replace(self, workload=workload, meshes=(found.case.mesh,), batches=tried, types=())


@dataclass(frozen=True)
class _Option:
    """An estimate of a pass, and of a service of such passes where there is one."""

    estimate: Estimate
    serving: Serving | None

    @property
    def fits(self) -> bool:
        return self.estimate.memory.fits and (self.serving is None or self.serving.fits)

    @property
    def seconds(self) -> float:
        if self.serving is None:
            return self.estimate.seconds
        return self.serving.tpot_seconds or self.serving.ideal_tpot_seconds

    @property
    def ttft(self) -> float:
        return self.serving.ttft_seconds or inf if self.serving else 0

    @property
    def chip_seconds(self) -> float:
        """Cost of a token (section 4.4)."""
        rate = self.serving.output_tokens_per_second if self.serving else None
        return self.estimate.case.mesh.chips / rate if rate else self.estimate.chip_seconds_per_token

    @property
    def where(self) -> str:
        case = self.estimate.case
        types = f"weights {case.workload.weights}, KV cache {case.workload.kv}"
        return f"on {case.mesh.chips} {case.chip.name} ({case.mesh}) with batch {case.workload.batch}, {types}"


@dataclass(frozen=True)
class Target:
    """What a plan must reach: times, of which a plan takes the cheapest; or a cost, for which it is the fastest.

    Attributes:
        seconds: most that a pass may take, or a service from token to token.
        ttft: most seconds to a service's first token.
        chip_seconds: most that a token may cost.
    """

    seconds: float | None = None
    chip_seconds: float | None = None
    ttft: float | None = None

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for both kinds or neither."""
        if (self.seconds is None and self.ttft is None) == (self.chip_seconds is None):
            raise UsageError("a target is a latency or a cost, one of the two")

    def pick(self, points: list[Estimate], service: Service | None = None) -> Estimate:
        """Return the best of those that fit and reach it; ``Infeasible``, with the nearest, where none does."""
        options = [_Option(each, serve(each, service) if service else None) for each in points]
        fitting = [each for each in options if each.fits]
        if not fitting:
            nearest = min(options, key=lambda each: each.estimate.memory.missing)
            memory = nearest.estimate.memory
            reason = f"is {memory.excess}" if memory.missing else "leaves requests waiting"
            raise Infeasible(f"nothing fits: the nearest, {nearest.where}, {reason}")
        within = [each for each in fitting if self._excess(each) <= 1]
        if not within:
            raise Infeasible(self._miss(min(fitting, key=self._excess)))
        key = _cost_first if self.chip_seconds is None else _time_first
        return min(within, key=key).estimate

    def _excess(self, option: _Option) -> float:
        """Return the figure that is furthest from its limit, over that limit."""
        limits = ((self.seconds, option.seconds), (self.ttft, option.ttft), (self.chip_seconds, option.chip_seconds))
        return max(figure / limit for limit, figure in limits if limit is not None)

    def _miss(self, nearest: _Option) -> str:
        where = f"({nearest.estimate.basis}), {nearest.where}"
        if self.chip_seconds is not None:
            most = f"no plan costs at most {self.chip_seconds:g} chip-seconds per token"
            return f"{most}: the nearest costs {nearest.chip_seconds:.4g} {where}"
        if self.ttft is None or (self.seconds is not None and nearest.seconds > self.seconds):
            of = "per token" if nearest.serving else "per pass"
            most = f"no plan takes at most {spell_seconds(self.seconds or 0)} {of}"
            return f"{most}: the nearest takes {spell_seconds(nearest.seconds)} {where}"
        if nearest.ttft == inf:
            return f"the time to a first token is not known: {nearest.estimate.uncalibrated}"
        most = f"no plan takes at most {spell_seconds(self.ttft)} to the first token"
        return f"{most}: the nearest takes {spell_seconds(nearest.ttft)} {where}"


def _cost_first(option: _Option) -> tuple[float, float]:
    return option.chip_seconds, option.seconds


def _time_first(option: _Option) -> tuple[float, float]:
    return option.seconds, option.chip_seconds


def types_to_try(chip: Chip, weights: str, kv: str, *, fixed: tuple[bool, bool]) -> tuple[tuple[str, str], ...]:
    """Return pairs of types of weights and KV cache: as they are, and in 8 bits where the chip multiplies those.

    ``fixed``: the one or the other stays.
    """
    narrow = tuple(
        now if stays or bytes_of(now) <= 1 else "fp8" for now, stays in zip((weights, kv), fixed, strict=True)
    )
    return tuple(dict.fromkeys(((weights, kv), narrow))) if "fp8" in chip.peak else ((weights, kv),)  # type: ignore[arg-type]


def batches(branches: int = 1, also: int | None = None) -> tuple[int, ...]:
    """Return the batches to try, up to 4096: powers of two and what lies between them, times ``branches``."""
    powers = [1 << power for power in range(LARGEST.bit_length())]
    steps = {*powers, *(3 * power // 2 for power in powers[1:])}
    found = {branches * step for step in steps if branches * step <= LARGEST}
    return tuple(sorted(found | ({also} if also else set())))


def meshes(chip: Chip) -> tuple[Mesh, ...]:
    """Return the meshes to try: one chip, and those that its links are made for; up to 8 chips behind a switch."""
    if not chip.link_bandwidth:
        return (mesh_of(chip, 1),)
    counts = sorted({1, *chip.axes}) if chip.axes else _BEHIND_A_SWITCH
    return tuple(mesh_of(chip, count) for count in counts if count == 1 or chip.joined_at(count))


def fewest(shape: Shape, chip: Chip, workload: Workload) -> Mesh:
    """Return the smallest of these meshes that a pass fits on, or the largest where it fits on none."""
    tried = meshes(chip)
    fitting = (mesh for mesh in tried if plan_layouts(shape, chip, mesh, workload).chosen.memory.fits)
    return next(fitting, tried[-1])


def pareto(points: list[Estimate]) -> list[Estimate]:
    """Return those that fit and that no other beats in time and in MFU, the fastest first.

    Where some have a calibrated time, all others are left out.
    """
    basis = "calibrated" if any(each.calibration for each in points) else "ideal"
    fitting = (each for each in points if each.memory.fits and each.basis == basis)
    front = list[Estimate]()
    for each in sorted(fitting, key=lambda each: (each.seconds, -each.mfu)):
        if not front or each.mfu > front[-1].mfu:
            front.append(each)
    return front
