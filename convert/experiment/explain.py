"""Dependencies of the modules of a first layer, and the reasons why nothing folds."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from prefold.convert.experiment.token_pure import Passes
from prefold.convert.experiment.tokens import BATCH, SEQ, are_rows, follows_tokens, neighbours_changed, same_rows
from prefold.convert.experiment.trace import Trace

TOKEN, PLACE, PLACED, OTHERS = "its token alone", "its position alone", "its token and its position", "other tokens"
NEITHER = "neither its token nor its position"


@dataclass(frozen=True)
class ModuleDependency:
    """A module of the first layer that has weights of its own, and the inputs that its output depends on."""

    module: str
    sees: str


def explain(model: nn.Module, first_block: str, passes: Passes) -> list[ModuleDependency]:
    """Return the dependency of every module with weights up to the end of the first block, in the order of entry."""
    return [ModuleDependency(name, _sees(name, passes)) for _, name in sorted(_ran(model, first_block, passes))]


def _ran(model: nn.Module, first_block: str, passes: Passes) -> Iterator[tuple[int, str]]:
    inside = [calls[0] for name, calls in passes.original.calls.items() if f"{name}.".startswith(f"{first_block}.")]
    begun = min(call.order for call in inside)
    for name, _ in model.named_modules():
        if name in passes.original.calls and _has_weights(model, name):
            outside = not name.startswith(f"{first_block}.")
            if not outside or passes.original.calls[name][0].order < begun:
                yield passes.original.calls[name][0].order, name


def _sees(name: str, passes: Passes) -> str:
    calls = [each.calls.get(name, []) for each in (passes.original, passes.mirrored, passes.neighbours_changed)]
    return seen_in(*(each[0].tensor if len(each) == 1 else None for each in calls))


def seen_in(one: torch.Tensor | None, there: torch.Tensor | None, near: torch.Tensor | None) -> str:
    """Return a tensor's dependency from three passes: as tokens are, mirrored, and with other neighbours."""
    if one is None or there is None or near is None or one.shape != near.shape:
        return OTHERS
    if follows_tokens(one, there):
        return TOKEN
    return _seen_beside(one, near) if one.is_floating_point() and one.numel() else OTHERS


def _seen_beside(one: torch.Tensor, near: torch.Tensor) -> str:
    """Return the dependency of a tensor that does not follow its tokens."""
    if are_rows(one) and not same_rows(one, one[:1].expand_as(one)):
        return PLACED if same_rows(neighbours_changed(one), near) else OTHERS
    if are_rows(one) or same_rows(one, near):
        return PLACE if _changes_with_places(one) else NEITHER
    return OTHERS


def _changes_with_places(rows: torch.Tensor) -> bool:
    """Return whether rows, the same for all tokens, differ by position; an encoder's output has its own length."""
    places = rows[0] if rows.dim() > 2 else rows
    return len(places) == SEQ and not same_rows(places, places[:1].expand_as(places))


def reasons(model: nn.Module, first_block: str, passes: Passes, reentered: Collection[str]) -> list[str]:
    """Return sentences why nothing of a first block folds: because of how it runs, or else of its input.

    ``reentered`` names modules that a whole pass runs more than once.
    """
    found = [_repeated(model, first_block, reentered), _shaped(first_block, passes)]
    known = [reason for reason in found if reason] or [_given(model, first_block, passes)]
    return [f"nothing folds: {reason}" for reason in known]


def _repeated(model: nn.Module, first_block: str, reentered: Collection[str]) -> str | None:
    holders = [first_block] + [name for name, part in model.named_modules() if name.startswith(f"{first_block}.")]
    weighty = [name for name in holders if _has_weights(model, name)]
    if first_block not in reentered and not (weighty and all(name in reentered for name in weighty)):
        return None
    return f"its first block, {first_block}, runs more than once in a pass, so that its weights are read all the same"


def _shaped(first_block: str, passes: Passes) -> str | None:
    """Return a reason in the positions of a block's input: others than the tokens'."""
    given = _taken(first_block, passes.original)
    if given is None or given.dim() < 2:
        return f"its first block, {first_block}, is given no tensor to begin with"
    shape = tuple(given.shape[:2])
    if shape != (BATCH, SEQ):
        return f"its first block takes {shape[1]} positions where there are {SEQ} tokens: others stand beside them"
    return None


def _given(model: nn.Module, first_block: str, passes: Passes) -> str:
    """Return a reason in the input of a block: a token alone, its position too, or other tokens."""
    sees = seen_in(
        *(_taken(first_block, each) for each in (passes.original, passes.mirrored, passes.neighbours_changed))
    )
    if sees == TOKEN:
        return _inside(model, first_block, passes)
    if sees == PLACED:
        return _placed(model, first_block, passes)
    if sees == PLACE:
        return "its first block is given its position alone: the tokens come in later"
    mixers = [
        name for name in _before(first_block, passes) if _sees(name, passes) == OTHERS and _has_weights(model, name)
    ]
    where = f", by {mixers[0]}" if mixers else ", by its own code"
    return f"tokens see each other before its first block{where}"


def _inside(model: nn.Module, first_block: str, passes: Passes) -> str:
    """Return why the modules of a block whose input is the token alone are no columns."""
    names = [name for name in passes.original.calls if name.startswith(f"{first_block}.") and _has_weights(model, name)]
    follow = [name for name in names if _sees(name, passes) == TOKEN]
    several = [name for name in follow if passes.original.calls[name][0].output is None]
    if several:
        return f"{several[0]} returns more than one tensor, and a column is one"
    if follow:
        return f"{follow[0]} sees its token, but says something else of it at padding, in a cached step, or elsewhere"
    return "its first block is given the token alone, but its weights are used by its own code, or behind an attention"


def _placed(model: nn.Module, first_block: str, passes: Passes) -> str:
    """Return why the input of a block, a token and its position, is no sum of look-ups, or of no use as one."""
    begin = "its first block is given a token and its position at once, "
    look_ups = [look_up.module for look_up in passes.look_ups]
    before = _before(first_block, passes)
    several = [name for name in before if _has_weights(model, name) and passes.original.calls[name][0].output is None]
    computed = [name for name in before if _sees(name, passes) == PLACE and name not in look_ups]
    if several:
        return f"{begin}and {several[0]} returns more than one tensor, which no sum of look-ups can be taken from"
    if computed:
        return f"{begin}and what {computed[0]} adds for a position is computed, not a row that it holds"
    if not look_ups:
        return f"{begin}and its own code adds the position: no module looks it up"
    names = ", ".join(look_ups)
    return f"{begin}but what it takes is no sum of the token's part and of what {names} return, behind a norm"


def _taken(name: str, seen: Trace) -> torch.Tensor | None:
    calls = seen.calls.get(name, [])
    return calls[0].taken if calls else None


def _before(first_block: str, passes: Passes) -> list[str]:
    """Name the modules that a pass has left before it enters the first block, in the order of entry."""
    begun = passes.original.calls[first_block][0].order
    entered = sorted((calls[0].order, name) for name, calls in passes.original.calls.items() if calls[0].order < begun)
    return [name for _, name in entered if not first_block.startswith(f"{name}.")]


def _has_weights(model: nn.Module, name: str) -> bool:
    """Return whether a module has weights of its own."""
    return next(model.get_submodule(name).parameters(recurse=False), None) is not None
