"""Plans for several numbers of chips and several batches, and which of them are worth a look (figure 1)."""

from dataclasses import dataclass, replace

from prefold.common.errors import UsageError
from prefold.common.units import spell_seconds
from prefold.plan.calibration import Calibration
from prefold.plan.chip.hardware import Chip, Mesh, mesh_of
from prefold.plan.cost.workload import Workload
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, plan_layouts
from prefold.plan.model.shape import Shape

LARGEST = 4096
_BEHIND_A_SWITCH = (1, 2, 4, 8)


@dataclass(frozen=True)
class Space:
    """Meshes and batches among which a plan is looked for; ``workload.batch`` is replaced by each of ``batches``."""

    shape: Shape
    chip: Chip
    workload: Workload
    meshes: tuple[Mesh, ...]
    batches: tuple[int, ...]
    calibrations: tuple[Calibration, ...] = ()

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a context that the model has too few positions for."""
        most, step = self.shape.max_position_embeddings, self.workload
        if most and step.positions > most:
            had = f"{self.shape.name} has {most:,} positions (max_position_embeddings)"
            raise UsageError(f"context {step.context:,}: {had}, and this {step.phase} needs {step.positions:,}")

    def points(self) -> list[Estimate]:
        """Return the layout to take for each mesh and each batch, whether it fits or not."""
        return [self._chosen(mesh, batch) for mesh in self.meshes for batch in self.batches]

    def _chosen(self, mesh: Mesh, batch: int) -> Estimate:
        workload = replace(self.workload, batch=batch)
        return plan_layouts(self.shape, self.chip, mesh, workload, calibrations=self.calibrations).chosen

    def around(self, found: Estimate) -> "Space":
        """Return the mesh of an estimate with its batch and all others."""
        workload = found.case.workload
        return replace(self, meshes=(found.case.mesh,), batches=batches(workload.branches, workload.batch))


@dataclass(frozen=True)
class Target:
    """Seconds that a pass may take, or chip-seconds that a token may cost: one of the two."""

    seconds: float | None = None
    chip_seconds: float | None = None

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for both or neither."""
        if (self.seconds is None) == (self.chip_seconds is None):
            raise UsageError("a target is a latency or a cost, one of the two")

    def pick(self, points: list[Estimate]) -> Estimate:
        """Return the best of those that fit and reach it; ``Infeasible``, with the nearest, where none does."""
        fitting = [each for each in points if each.memory.fits]
        if not fitting:
            nearest = min(points, key=lambda each: each.memory.missing)
            raise Infeasible(f"nothing fits: the nearest, {_where(nearest)}, is {nearest.memory.excess}")
        if self.seconds is not None:
            return self._cheapest(fitting, self.seconds)
        return self._fastest(fitting, self.chip_seconds or 0)

    def _cheapest(self, points: list[Estimate], seconds: float) -> Estimate:
        nearest = min(points, key=lambda each: each.seconds)
        if nearest.seconds > seconds:
            most = f"no plan takes at most {spell_seconds(seconds)} per pass"
            raise Infeasible(f"{most}: the nearest takes {spell_seconds(nearest.seconds)} {_told(nearest)}")
        within = [each for each in points if each.seconds <= seconds]
        return min(within, key=lambda each: (each.chip_seconds_per_token, each.seconds))

    def _fastest(self, points: list[Estimate], cost: float) -> Estimate:
        nearest = min(points, key=lambda each: each.chip_seconds_per_token)
        if nearest.chip_seconds_per_token > cost:
            most = f"no plan costs at most {cost:g} chip-seconds per token"
            raise Infeasible(f"{most}: the nearest costs {nearest.chip_seconds_per_token:.4g} {_told(nearest)}")
        within = [each for each in points if each.chip_seconds_per_token <= cost]
        return min(within, key=lambda each: (each.seconds, each.chip_seconds_per_token))


def _told(estimate: Estimate) -> str:
    return f"({estimate.basis}), {_where(estimate)}"


def _where(estimate: Estimate) -> str:
    case = estimate.case
    return f"on {case.mesh.chips} {case.chip.name} ({case.mesh}) with batch {case.workload.batch}"


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
    return tuple(mesh_of(chip, count) for count in counts)


def fewest(shape: Shape, chip: Chip, workload: Workload) -> Mesh:
    """Return the smallest of these meshes that a pass fits on, or the largest where it fits on none."""
    tried = meshes(chip)
    fitting = (mesh for mesh in tried if plan_layouts(shape, chip, mesh, workload).chosen.memory.fits)
    return next(fitting, tried[-1])


def pareto(points: list[Estimate]) -> list[Estimate]:
    """Return those that fit and that no other beats in time and in MFU, the fastest first."""
    front = list[Estimate]()
    for each in sorted(points, key=lambda each: (each.seconds, -each.mfu)):
        if each.memory.fits and (not front or each.mfu > front[-1].mfu):
            front.append(each)
    return front
