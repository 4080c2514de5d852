"""A plan in full: the layouts, source and folded, what else would help, and what other batches or chips give."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

from prefold.plan.cost.fold import Fold, break_even_batch, row_width, table_bytes, table_for
from prefold.plan.cost.memory import context_left
from prefold.plan.engine import commands
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, Plan, plan_layouts
from prefold.plan.levers import Lever, rank_levers, verdict
from prefold.plan.serving import Service, Serving, require_positions, serve
from prefold.plan.sweep import Space, Target, pareto


@dataclass(frozen=True)
class Advice:
    """The answer to ``prefold plan``; levers that save most come first."""

    plan: Plan
    folded: Plan
    fold: Fold
    levers: list[Lever]
    sweep: list[Estimate]
    serving: Serving | None = None
    positions: int | None = None

    @property
    def chosen(self) -> Estimate:
        """The layout to take."""
        return self.plan.chosen

    @cached_property
    def twin(self) -> Estimate:
        """The folded model in the layout that was chosen for the source."""
        return Estimate(replace(self.chosen.case, fold=self.fold), self.chosen.calibrations)

    @property
    def verdict(self) -> str:
        """The rank of folding among the levers, in a sentence."""
        return verdict(self.levers)

    @property
    def commands(self) -> dict[str, str]:
        """The command of each engine; empty for a layout that no engine has."""
        return commands(self.chosen.case, self.positions)

    @cached_property
    def front(self) -> list[Estimate]:
        """Those of the sweep that no other beats in time and in MFU."""
        return pareto(self.sweep)

    @property
    def break_even_batch(self) -> int | None:
        """The most tokens per pass at which rows are no more bytes than what they replace; None where all gain."""
        case = self.chosen.case
        return break_even_batch(case.shape, case.workload.weights, self.fold)

    def require_room(self) -> None:
        """Raise ``Infeasible`` where no layout fits, with what would; requests that wait for room are no such case."""
        chosen = self.chosen
        if chosen.memory.fits or (self.serving and self.serving.concurrency_that_fits):
            return
        case = chosen.case
        asked = f"batch {case.workload.batch} with context {case.workload.context}"
        where = f"{case.mesh.chips} {case.chip.name} ({case.mesh})"
        left = max(context_left(each.case) for each in self.plan.estimates)
        lever = next((each.name for each in self.levers if each.estimate.memory.fits), "")
        would = [f"a context of {int(left)}"] if 1 <= left < inf else []
        would += [lever] if lever else []
        advised = f"; {' or '.join(would)} would fit" if would else ""
        raise Infeasible(f"{case.shape.name}: {asked} does not fit on {where}: {chosen.memory.excess}{advised}")

    def as_json(self) -> dict[str, Any]:
        """Return the figures under the names that other programs rely on; times are seconds per forward pass."""
        case, calibration = self.chosen.case, self.chosen.calibration
        return {
            "model": case.shape.name,
            "hardware": case.chip.name,
            "chips": case.mesh.chips,
            "mesh": str(case.mesh),
            "workload": asdict(case.workload),
            "calibration": calibration.source if calibration else None,
            **_plan_json(self.plan),
            "folded": self._folded_json(),
            "levers": [lever.as_json() for lever in self.levers],
            "verdict": self.verdict,
            "serving": asdict(self.serving) if self.serving else None,
            "commands": self.commands,
            "sweep": [self._point_json(each) for each in self.sweep],
        }

    def _folded_json(self) -> dict[str, Any]:
        shape = self.chosen.case.shape
        table = asdict(self.fold) | {"row_width": row_width(shape), "bytes": table_bytes(shape, self.fold)}
        return {
            "table": table,
            "break_even_batch": self.break_even_batch,
            "same_layout": self.twin.as_json(),
            **_plan_json(self.folded),
        }

    def _point_json(self, point: Estimate) -> dict[str, Any]:
        case = point.case
        where = {"chips": case.mesh.chips, "mesh": str(case.mesh), "batch": case.workload.batch}
        return where | point.as_json() | {"pareto": any(point is each for each in self.front)}


def _plan_json(plan: Plan) -> dict[str, Any]:
    layouts = [each.as_json() for each in plan.estimates]
    return {"layouts": layouts, "refused": plan.refused, "chosen": plan.chosen.as_json()}


def advise(
    space: Space,
    fold: Fold | None = None,
    target: Target | None = None,
    *,
    service: Service | None = None,
    acceptance: float | None = None,
) -> Advice:
    """Plan a pass, its source and folded, with other levers, and with other batches.

    Without a target the first mesh and batch of ``space`` are planned; ``fold`` is a table on the device if None. With
    a ``service``, a batch is its concurrency. ``acceptance``: of a drafted token.

    Raises:
        UsageError: a request is longer than the model has positions for.
        Infeasible: nothing reaches the target. Without one, ``Advice.require_room`` raises it for what does not fit.
    """
    if service:
        require_positions(space.shape, service)
    points = space.points()
    found = target.pick(points, service) if target else points[0]
    case, fold = found.case, fold or table_for(found.case.workload)
    asked = (case.shape, case.chip, case.mesh, case.workload)
    source = plan_layouts(*asked, calibrations=found.calibrations)
    types = (case.workload.weights, case.workload.kv)
    tried = [each for each in points if (each.case.workload.weights, each.case.workload.kv) == types]
    return Advice(
        plan=source,
        folded=plan_layouts(*asked, fold=fold, calibrations=found.calibrations),
        fold=fold,
        levers=rank_levers(source.chosen, acceptance),
        sweep=tried if len(tried) > 1 else space.around(found).points(),
        serving=serve(source.chosen, service) if service else None,
        positions=service.positions if service else None,
    )
