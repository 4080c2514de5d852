"""What would make a pass cheaper, and by how much: every lever tried on the same case, ranked by the time it saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from prefold.plan.cost.attention import shardings
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import PLACEMENTS, Fold, table_for
from prefold.plan.cost.workload import MOST, bytes_of
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, plan_layouts
from prefold.plan.sweep import meshes

_SMALLER = ("int8", "fp8", "int4")
_DRAFTED = 3
_PERCENT = 100


@dataclass(frozen=True)
class Lever:
    """One change of a case, and the seconds of a pass that it saves, negative where it takes longer."""

    name: str
    seconds_saved: float
    share: float
    basis: str
    note: str
    estimate: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return the figures by their names."""
        return {
            "name": self.name,
            "seconds_saved": self.seconds_saved,
            "share": self.share,
            "basis": self.basis,
            "note": self.note,
            "fits": self.estimate.memory.fits,
        }


def rank_levers(base: Estimate, acceptance: float | None = None) -> list[Lever]:
    """Try every lever on a case, each by itself; those that save most come first.

    A larger batch does not make a pass shorter: what it saves is of the time of as many sequences as the pass has now.
    ``acceptance``: of a drafted token; without it no draft is tried.
    """
    found = [_draft(base, acceptance)] if acceptance is not None and base.case.workload.phase == "decode" else []
    for name, note, changed in _changes(base):
        try:
            changed.require()
        except Infeasible:
            continue
        found.append(_lever(name, note, base, Estimate(changed, base.calibrations)))
    return sorted(found, key=lambda each: -each.seconds_saved)


def _lever(name: str, note: str, base: Estimate, other: Estimate) -> Lever:
    basis, (now, then) = _compared(base, other)
    saved = now - then * base.case.workload.batch / other.case.workload.batch
    if not other.memory.fits:
        note = "; ".join(filter(None, [note, f"does not fit: {other.memory.excess}"]))
    return Lever(name, saved, saved / now, basis, note, other)


def _compared(*estimates: Estimate) -> tuple[str, list[float]]:
    """Return the basis that all have, and their seconds: calibrated ones, or ideal ones where one has no other."""
    if all(each.calibration for each in estimates):
        return "calibrated", [each.seconds for each in estimates]
    return "ideal", [each.ideal_seconds for each in estimates]


def _changes(base: Estimate) -> Iterator[tuple[str, str, Case]]:
    case = base.case
    yield from _folds(case)
    yield from _types(case)
    yield from _chips(case)
    yield from _layouts(base)
    yield from _attention(case)
    yield from _prefixes(case)
    if 2 * case.workload.batch <= MOST:
        twice = replace(case.workload, batch=2 * case.workload.batch)
        yield (
            "larger batch",
            f"{twice.batch}; for each sequence: a step itself takes longer",
            replace(case, workload=twice),
        )


def _folds(case: Case) -> Iterator[tuple[str, str, Case]]:
    for placement in PLACEMENTS:
        if placement == "host" and case.chip.shares_memory:
            continue
        if case.fold is None:
            name = "folding" if placement == "device" else f"folding, table on {placement}"
            yield name, "", replace(case, fold=table_for(case.workload, placement))
        elif case.fold.placement != placement:
            yield f"table on {placement}", "", replace(case, fold=Fold(placement, case.fold.dtype))


def _types(case: Case) -> Iterator[tuple[str, str, Case]]:
    weights, kv = (bytes_of(each) for each in (case.workload.weights, case.workload.kv))
    changes = [(f"{each} weights", each, case.workload.kv) for each in _SMALLER if bytes_of(each) < weights]
    changes += [("fp8 KV cache", case.workload.weights, "fp8")] if kv > 1 else []
    changes += [("fp8 weights and KV cache", "fp8", "fp8")] if min(weights, kv) > 1 else []
    for name, stored, cached in changes:
        yield name, "gives up exactness", replace(case, workload=replace(case.workload, weights=stored, kv=cached))


def _chips(case: Case) -> Iterator[tuple[str, str, Case]]:
    now = case.mesh.chips
    within = [mesh for mesh in meshes(case.chip) if mesh.chips == 1 or mesh.chips <= case.chip.node]
    fewer, more = [mesh for mesh in within if mesh.chips < now], [mesh for mesh in within if mesh.chips > now]
    for mesh in (*fewer[-1:], *more[:1]):
        yield f"{mesh.chips} chip{'s' if mesh.chips > 1 else ''}", f"instead of {now}", replace(case, mesh=mesh)


def _draft(base: Estimate, acceptance: float) -> Lever:
    """Draft a few tokens with one more layer, as multi-token prediction does; they count up to the first miss."""
    case = base.case
    checked = Estimate(replace(case, workload=replace(case.workload, drafted=_DRAFTED)), base.calibrations)
    experts = case.shape.experts and replace(case.shape.experts, first_k_dense_replace=0)
    layer = replace(case.shape, num_layers=1, sliding_layers=0, experts=experts, state=None)
    drafted = Estimate(replace(case, shape=layer, fold=None), base.calibrations)
    tokens = sum(acceptance**count for count in range(_DRAFTED + 1))
    basis, (now, then, more) = _compared(base, checked, drafted)
    saved = now - (then + _DRAFTED * more) / tokens
    note = f"{_DRAFTED} tokens by one more layer, each accepted at {acceptance:.0%}; for each token"
    return Lever("draft", saved, saved / now, basis, note, checked)


def _layouts(base: Estimate) -> Iterator[tuple[str, str, Case]]:
    case = base.case
    found = plan_layouts(
        case.shape, case.chip, case.mesh, case.workload, fold=case.fold, calibrations=base.calibrations
    )
    others = [each for each in found.estimates if each.case.layout != case.layout]
    if others:
        best = next((each for each in others if each.memory.fits), others[0])
        yield "another layout", f"{best.case.layout}, attention by {best.case.sharding}", best.case


def _attention(case: Case) -> Iterator[tuple[str, str, Case]]:
    for sharding in shardings(case.layout, case.mesh):
        if sharding != case.sharding:
            yield f"{sharding}-sharded attention", "", replace(case, sharding=sharding)


def _prefixes(case: Case) -> Iterator[tuple[str, str, Case]]:
    workload = case.workload
    if workload.branches > 1 and workload.shared_prefix and not workload.shares_reads:
        note = f"{workload.branches} branches, {workload.shared_prefix} tokens"
        yield "sharing prefixes", note, replace(case, workload=replace(workload, shares_reads=True))


def verdict(levers: list[Lever]) -> str:
    """Return the rank of folding among the levers, in a sentence."""
    names = [each.name for each in levers]
    if "folding" not in names:
        return "The first layer is folded already."
    place, lever = names.index("folding") + 1, levers[names.index("folding")]
    share = f"{lever.share * _PERCENT:.2f} % of a step's time ({lever.basis})"
    if lever.seconds_saved <= 0:
        return f"Folding saves no time here: {share}."
    best = levers[0]
    if place == 1:
        return f"Folding saves the most of {len(levers)} levers: {share}."
    last = "the least" if place == len(levers) else f"number {place}"
    return f"Folding saves {share}, {last} of {len(levers)} levers; {best.name} saves {best.share * _PERCENT:.2f} %."
