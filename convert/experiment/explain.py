"""What each module of the first layer sees, told for people."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from prefold.convert.experiment.token_pure import Passes
from prefold.convert.experiment.tokens import SEQ, are_rows, follows_tokens, neighbours_changed, same_rows
from prefold.convert.experiment.trace import Call

TOKEN, PLACE, PLACED, OTHERS = "its token alone", "its position alone", "its token and its position", "other tokens"
NEITHER = "neither its token nor its position"


@dataclass(frozen=True)
class ModuleDependency:
    """A module of the first layer that has weights of its own, and what its output depends on.

    Attributes:
        module: its name.
        sees: its token, its position, both, neither, or other tokens.
    """

    module: str
    sees: str


def explain(model: nn.Module, first_block: str, passes: Passes) -> list[ModuleDependency]:
    """Say of every module with weights up to the end of the first block what it sees, in the order of entry."""
    return [ModuleDependency(name, _sees(name, passes)) for _, name in sorted(_ran(model, first_block, passes))]


def _ran(model: nn.Module, first_block: str, passes: Passes) -> Iterator[tuple[int, str]]:
    inside = [calls[0] for name, calls in passes.original.calls.items() if f"{name}.".startswith(f"{first_block}.")]
    begun = min(call.order for call in inside)
    for name, module in model.named_modules():
        if name in passes.original.calls and next(module.parameters(recurse=False), None) is not None:
            outside = not name.startswith(f"{first_block}.")
            if not outside or passes.original.calls[name][0].order < begun:
                yield passes.original.calls[name][0].order, name


def _sees(name: str, passes: Passes) -> str:
    calls = (_only(seen.calls.get(name, [])) for seen in (passes.original, passes.mirrored, passes.neighbours_changed))
    return seen_in(*(None if call is None else call.tensor for call in calls))


def seen_in(one: torch.Tensor | None, there: torch.Tensor | None, near: torch.Tensor | None) -> str:
    """Say what a tensor depends on, from three passes: as tokens are, mirrored, and with other neighbours."""
    if one is None or there is None or near is None or one.shape != near.shape:
        return OTHERS
    if follows_tokens(one, there):
        return TOKEN
    return _seen_beside(one, near) if one.is_floating_point() and one.numel() else OTHERS


def _seen_beside(one: torch.Tensor, near: torch.Tensor) -> str:
    """Return what a tensor that does not follow its tokens depends on."""
    if are_rows(one) and not same_rows(one, one[:1].expand_as(one)):
        return PLACED if same_rows(neighbours_changed(one), near) else OTHERS
    if are_rows(one) or same_rows(one, near):
        return PLACE if _changes_with_places(one) else NEITHER
    return OTHERS


def _changes_with_places(rows: torch.Tensor) -> bool:
    """Say whether rows, the same for all tokens, differ by place; an encoder's output has a length of its own."""
    places = rows[0] if rows.dim() > 2 else rows
    return len(places) == SEQ and not same_rows(places, places[:1].expand_as(places))


def _only(calls: list[Call]) -> Call | None:
    return calls[0] if len(calls) == 1 else None
