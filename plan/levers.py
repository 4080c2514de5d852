"""What would make a pass cheaper, and by how much: every lever tried on the same case, ranked by the time it saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from prefold.plan.cost.attention import shardings
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import PLACEMENTS, Fold, table_for
from prefold.plan.cost.workload import bytes_of
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, plan_layouts

_SMALLER = ("int8", "fp8")
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


def rank_levers(base: Estimate) -> list[Lever]:
    """Try every lever on a case, each by itself; those that save most come first.

    A larger batch does not make a pass shorter: what it saves is of the time of as many sequences as the pass has now.
    """
    found = list[Lever]()
    for name, note, changed in _changes(base):
        try:
            changed.require()
        except Infeasible:
            continue
        found.append(_lever(name, note, base, Estimate(changed, base.calibrations)))
    return sorted(found, key=lambda each: -each.seconds_saved)


def _lever(name: str, note: str, base: Estimate, other: Estimate) -> Lever:
    saved = base.seconds - other.seconds * base.case.workload.batch / other.case.workload.batch
    if not other.memory.fits:
        note = "; ".join(filter(None, [note, f"does not fit: {other.memory.excess}"]))
    return Lever(name, saved, saved / base.seconds, base.basis, note, other)


def _changes(base: Estimate) -> Iterator[tuple[str, str, Case]]:
    case = base.case
    yield from _folds(case)
    yield from _weights(case)
    yield from _layouts(base)
    yield from _attention(case)
    yield from _prefixes(case)
    twice = replace(case.workload, batch=2 * case.workload.batch)
    yield "larger batch", f"{twice.batch}; for each sequence: a step itself takes longer", replace(case, workload=twice)


def _folds(case: Case) -> Iterator[tuple[str, str, Case]]:
    for placement in PLACEMENTS:
        if placement == "host" and case.chip.shares_memory:
            continue
        if case.fold is None:
            name = "folding" if placement == "device" else f"folding, table on {placement}"
            yield name, "", replace(case, fold=table_for(case.workload, placement))
        elif case.fold.placement != placement:
            yield f"table on {placement}", "", replace(case, fold=Fold(placement, case.fold.dtype))


def _weights(case: Case) -> Iterator[tuple[str, str, Case]]:
    now = bytes_of(case.workload.weights)
    for dtype in _SMALLER:
        if bytes_of(dtype) < now:
            workload = replace(case.workload, weights=dtype)
            yield f"{dtype} weights", "gives up exactness", replace(case, workload=workload)


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
