"""Projections that see a sum of look-ups, of the token and of its position, through nothing but a norm.

Graef 2024 says that positions added to the embedding prevent the trick. They do not: what a linear map W makes of a
norm's output is still a sum over the look-ups, times one number per token, the norm's scale s:

    W (s * centre(e + p) * gain + shift) + b = s * (A + B) + c,    A = W (centre(e) * gain),  c = W shift + b

A is one row per token, B one per position. s is computed from e + p, which is read anyway as the residual. Behind a
second norm the same holds once more: s' * (s * (A + B) + c) + c'. And where a linear map M is in front of the sum, as
of several look-ups' rows side by side, M(e, q) is M(e, 0) + M(0, q) - M(0, 0): the token's part and the other's.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed
from prefold.convert.experiment.forms import PLAIN
from prefold.convert.experiment.look_ups import LookUp, Norm, find_norm
from prefold.convert.experiment.token_pure import Passes, TokenPureModule, cached_step, has_weights, same_in_a_step
from prefold.convert.experiment.tokens import BATCH, SEQ, are_rows, is_constant, mirrored, padding_mask, same_rows
from prefold.convert.experiment.trace import Call, Overrides, Trace, trace
from prefold.convert.model.inputs import Side

# A factor is fitted to values in fp32; so close to one it is one.
_UNITY = 1e-6
_VARIANTS = 5


@dataclass(frozen=True)
class Separable:
    """A sum of look-ups that reaches the first block.

    Attributes:
        token: the token-pure module that the token's part is made of.
        through: the module that returns that part: the same, or a linear map of it and of look-ups.
        factor: of that part in the sum.
        norms: between the sum and the columns, one behind the other; empty where projections read the sum itself.
        normed: the norms as the experiment saw them.
        columns: modules that are linear in the last norm's output, in the order of entry.
    """

    token: str
    through: str
    factor: float = 1.0
    look_ups: list[LookUp] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    normed: list[TokenPureModule] = field(default_factory=list)
    columns: list[TokenPureModule] = field(default_factory=list)


def find_separable(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    passes: Passes,
    pure: list[TokenPureModule],
    reentered: Collection[str] = (),
) -> Separable | None:
    """Find the sum of look-ups that reaches the first block, and the modules linear in it; None where there is none.

    Where the block has norms of its own, the modules behind those count.
    """
    alone = [Separable(token.name, token.name) for token in pure]
    for parts in (alone, _maps(model, side, first_block, ids, passes, alone)):
        found = [
            replace(sum_, columns=_linear_modules(model, side, first_block, ids, passes, sum_, reentered))
            for sum_ in _sums(model, passes, [*parts])
        ]
        inside = [sum_ for sum_ in found if any(column.name.startswith(f"{first_block}.") for column in sum_.columns)]
        if chosen := next(iter([*inside, *(sum_ for sum_ in found if sum_.columns)]), None):
            return chosen
    return None


def _maps(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, passes: Passes, alone: list[Separable]
) -> Iterator[Separable]:
    """Yield the parts of a sum that a module returns which is linear in a token-pure module's rows and in look-ups'.

    What it makes of any other look-up would be taken for its constant: a model that has more is left out.
    """
    for part in alone if passes.look_ups else []:
        sources = [part.token, *(look_up.module for look_up in passes.look_ups)]
        is_plain = all(passes.original.calls[name][0].form == PLAIN for name in sources)
        if is_plain and _takes_ids(model, passes) <= {*sources}:
            try:
                yield from _maps_of(model, side, first_block, ids, passes, sources)
            except ModelFailed:
                continue  # it wants other shapes of its look-ups


def _maps_of(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, passes: Passes, sources: list[str]
) -> Iterator[Separable]:
    """Yield the modules before a block that are linear in what ``sources`` return, the token's first."""
    feeding: Overrides = {name: partial(_varied, number) for number, name in enumerate(sources)}
    seen = trace(model, side, first_block, ids.repeat(_VARIANTS, 1), feeding)
    moved = [(each, trace(model, side, first_block, ids, {each.module: _other})) for each in passes.look_ups]
    for name, module in model.named_modules():
        is_before = name not in sources and has_weights(module) and not name.startswith(f"{first_block}.")
        if is_before and _is_linear(seen, name) and seen.calls[name][0].form == PLAIN:
            mapped = [look_up for look_up, there in moved if _differs(name, passes.original, there)]
            yield from [Separable(sources[0], name, look_ups=mapped)] if mapped else []


def _differs(name: str, here: Trace, there: Trace) -> bool:
    one, other = (seen.calls[name][0].output for seen in (here, there))
    return one is None or other is None or not same_rows(one, other)


def _takes_ids(model: PreTrainedModel, passes: Passes) -> set[str]:
    """Name the modules that take whole numbers and have no parts, as look-ups have none."""
    firsts = [(name, calls[0].taken) for name, calls in passes.original.calls.items()]
    taken = [name for name, taken in firsts if taken is not None and not taken.is_floating_point()]
    return {name for name in taken if next(model.get_submodule(name).children(), None) is None}


def _varied(seed: int, rows: torch.Tensor) -> torch.Tensor:
    """Return random rows of this width for ``x``, ``y``, ``x + y``, zeros, and ``x`` mirrored."""
    one, two = torch.randn(2, BATCH, SEQ, rows.shape[-1], generator=torch.Generator().manual_seed(seed))
    return torch.cat([one, two, one + two, torch.zeros_like(one), mirrored(one)])


def _other(rows: torch.Tensor) -> torch.Tensor:
    """Return random rows of this width, as in a pass over the experiment's tokens."""
    return _varied(0, rows)[:BATCH]


def _sums(model: PreTrainedModel, passes: Passes, parts: list[Separable]) -> Iterator[Separable]:
    """Yield the sums that the first block may see: through norms, one or two, or bare."""
    calls = sorted((calls[0].order, name) for name, calls in passes.original.calls.items() if len(calls) == 1)
    once = {name: passes.original.calls[name][0] for _, name in calls}
    fits = {name: fitted for name in once if (fitted := _fit(name, passes, parts))}
    for name, fitted in fits.items():
        norm = find_norm(model.get_submodule(name), name, once[name])
        if norm is None:
            continue
        through = replace(fitted, norms=[norm], normed=[_seen(name, once[name])])
        yield through
        yield from _through_second(model, once, through)
    yield from list(fits.values())[:1]


def _through_second(model: PreTrainedModel, once: dict[str, Call], first: Separable) -> Iterator[Separable]:
    """Yield the sum behind a second norm, which reads the first one's output."""
    for name, call in once.items():
        taken = call.taken
        if taken is None or taken.shape != first.normed[0].rows.shape or not same_rows(taken, first.normed[0].rows):
            continue
        norm = find_norm(model.get_submodule(name), name, call)
        if norm is not None:
            yield replace(first, norms=[*first.norms, norm], normed=[*first.normed, _seen(name, call)])


def _seen(name: str, call: Call) -> TokenPureModule:
    rows: torch.Tensor = call.output  # type: ignore[assignment]  # a norm returns one tensor
    return TokenPureModule(name, list(rows.shape[2:]), call.order, rows)


def _fit(name: str, passes: Passes, parts: list[Separable]) -> Separable | None:
    """Return a module's input as the sum of one of ``parts`` and of look-ups; None where it is none."""
    taken = passes.original.calls[name][0].taken
    if taken is None or not are_rows(taken):
        return None
    returned = [(look_up, _returned(look_up, passes.original)) for look_up in passes.look_ups]
    added = [(look_up, rows.expand_as(taken)) for look_up, rows in returned if _broadcasts(rows, taken)]
    fits = (_fit_part(name, taken, part, added, passes) for part in reversed(parts))
    return next((fit for fit in fits if fit), None)


def _fit_part(
    name: str, taken: torch.Tensor, part: Separable, added: list[tuple[LookUp, torch.Tensor]], passes: Passes
) -> Separable | None:
    """Return a module's input as the sum of one part that follows the token and of look-ups; None where it is none."""
    own: torch.Tensor = passes.original.calls[part.through][0].output  # type: ignore[assignment]  # it returns rows
    if own.shape != taken.shape:
        return None
    added = [(look_up, rows) for look_up, rows in added if look_up not in part.look_ups]
    factors = _factors(taken, [own, *(rows for _, rows in added)])
    if factors is None or factors[0] == 0:
        return None
    mapped = [replace(each, factor=factors[0], mapped=True) for each in part.look_ups]
    used = [replace(each, factor=f) for (each, _), f in zip(added, factors[1:], strict=True) if f != 0]
    found = replace(part, factor=factors[0], look_ups=[*mapped, *used])
    return found if found.look_ups and _holds(name, found, passes.look_ups_changed) else None


def _returned(look_up: LookUp, seen: Trace) -> torch.Tensor:
    """Add up a look-up's outputs over all its calls in a pass."""
    return torch.stack(torch.broadcast_tensors(*look_up.returned(seen))).sum(0)


def _holds(name: str, found: Separable, changed: Trace | None) -> bool:
    """Return whether a module's input is the same sum in a pass whose look-ups return changed rows."""
    calls = changed.calls.get(name, []) if changed else []
    if changed is None or len(calls) != 1 or calls[0].taken is None:
        return False
    part: torch.Tensor = changed.calls[found.through][0].output  # type: ignore[assignment]  # it returned rows before
    others = [each.factor * _returned(each, changed) for each in found.look_ups if not each.mapped]
    return same_rows(calls[0].taken, sum(others, part * found.factor))


def _broadcasts(rows: torch.Tensor, taken: torch.Tensor) -> bool:
    if rows.shape[-1] != taken.shape[-1] or rows.dim() > taken.dim():
        return False
    return all(size in (1, whole) for size, whole in zip(reversed(rows.shape), reversed(taken.shape), strict=False))


def _factors(total: torch.Tensor, parts: list[torch.Tensor]) -> list[float] | None:
    """Return the factors by which ``parts`` add up to ``total``; None where there are none."""
    if not total.isfinite().all():
        return None
    matrix = torch.stack([part.double().flatten() for part in parts], dim=1)
    solved = torch.linalg.lstsq(matrix, total.double().flatten()[:, None]).solution[:, 0]
    if not same_rows(total.double(), (matrix @ solved).view_as(total)):
        return None
    return [_snapped(float(factor)) for factor in solved]


def _snapped(factor: float) -> float:
    return next((exact for exact in (0.0, 1.0) if abs(factor - exact) < _UNITY), factor)


def fed(sum_: Separable, values: torch.Tensor) -> Overrides:
    """Return overrides that let ``values``, ``[batch, seq, width]``, come out of the last norm, or of the sum.

    A pass over fewer tokens gets the last of them.
    """
    if sum_.norms:
        return {sum_.norms[-1].module: lambda output: values[:, -output.shape[1] :].clone()}
    silent: Overrides = {look_up.module: torch.zeros_like for look_up in sum_.look_ups}
    return silent | {sum_.through: lambda output: values[:, -output.shape[1] :] / sum_.factor}


def _linear_modules(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    passes: Passes,
    sum_: Separable,
    reentered: Collection[str],
) -> list[TokenPureModule]:
    """Return the outermost modules with weights that are linear, up to a constant, in the last norm's output."""
    variants = _varied(0, passes.original.calls[sum_.through][0].tensor)  # type: ignore[arg-type]  # the sum has it
    tokens, mask = ids.repeat(_VARIANTS, 1), padding_mask().repeat(_VARIANTS, 1)
    seen = trace(model, side, first_block, tokens, fed(sum_, variants))
    padded = trace(model, side, first_block, tokens, fed(sum_, variants), mask)
    cached = cached_step(model, side, first_block, ids, fed(sum_, variants[:BATCH]))
    beside = [*(look_up.module for look_up in sum_.look_ups), *(norm.module for norm in sum_.norms)]
    sources = [sum_.token, sum_.through, *beside]
    found: list[TokenPureModule] = []
    for name, module in model.named_modules():
        inside = name in reentered or any(name.startswith(f"{outer.name}.") for outer in found)
        if inside or any(f"{source}.".startswith(f"{name}.") for source in sources):
            continue
        if has_weights(module) and _is_linear(seen, name):
            pure = _linear(name, passes.original.calls[name][0], seen, padded, cached)
            found += [pure] if pure else []
    return sorted(found, key=lambda pure: pure.order)


def _linear(name: str, call: Call, seen: Trace, padded: Trace, cached: Trace | None) -> TokenPureModule | None:
    """Return a linear module as a column, if it returns rows, in a cached step, too."""
    masked = _is_masked(seen, padded, name)
    if call.output is None or not are_rows(call.output) or masked is None:
        return None
    if not same_in_a_step(name, seen.calls[name][0].output[:BATCH], cached):  # type: ignore[index]  # it is linear
        return None
    return TokenPureModule(name, list(call.output.shape[2:]), call.order, call.output, masked)


def _is_masked(seen: Trace, padded: Trace, name: str) -> bool | None:
    """Return whether padded positions become a zero sum's; None where they become neither those nor their own."""
    shown, covered = (each.calls[name][0].output for each in (seen, padded))
    if shown is None or covered is None or shown.shape != covered.shape:
        return None
    (one, _, _, none, _), (hidden, *_) = shown.split(BATCH), covered.split(BATCH)
    if same_rows(one, hidden):
        return False
    where = padding_mask() == 0
    expected = torch.where(where.view(BATCH, SEQ, *[1] * (one.dim() - 2)), none, one)
    return True if same_rows(expected, hidden) else None


def _is_linear(seen: Trace, name: str) -> bool:
    calls = seen.calls.get(name, [])
    if len(calls) != 1 or calls[0].output is None or calls[0].output.shape[0] != _VARIANTS * BATCH:
        return False
    if calls[0].output.dim() < 3 or calls[0].output.shape[1] != SEQ or not calls[0].output.is_floating_point():
        return False
    one, two, both, none, moved = calls[0].output.split(BATCH)
    additive = same_rows(both + none, one + two)
    return additive and same_rows(one, mirrored(moved)) and not is_constant(one)
