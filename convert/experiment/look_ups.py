"""Embeddings of something other than the token: of its position, of its type."""

from dataclasses import dataclass

import torch
from torch import nn

from prefold.convert.experiment.tokens import follows_tokens
from prefold.convert.experiment.trace import Trace


@dataclass(frozen=True)
class LookUp:
    """A module that returns rows of its weight, chosen by anything but the token.

    Attributes:
        module: its name in the model.
        weight: the name of its parameter or buffer, ``[rows, width]``.
        rows: how many it holds.
        width: values in one of them.
        factor: what the model multiplies them by before it adds them to the token's.
    """

    module: str
    weight: str
    rows: int
    width: int
    factor: float = 1.0

    def returned(self, seen: Trace) -> list[torch.Tensor]:
        """Return what it returned in a pass, each time that it was asked."""
        return [call.tensor for call in seen.calls[self.module] if call.tensor is not None]


def find_look_ups(model: nn.Module, here: Trace, there: Trace) -> list[LookUp]:
    """Find the look-ups of a pass and its mirrored one: what they return are rows of what they hold."""
    found = []
    for name, module in model.named_modules():
        calls, moved = here.calls.get(name, []), there.calls.get(name, [])
        table = _only_table(module)
        if not calls or len(calls) != len(moved) or table is None:
            continue
        weight, values = table
        if all(_returns_rows(values, one.tensor, other.tensor) for one, other in zip(calls, moved, strict=True)):
            found.append(LookUp(name, weight, *values.shape))
    return found


def _only_table(module: nn.Module) -> tuple[str, torch.Tensor] | None:
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    tables = [(name, values) for name, values in held if values.dim() == 2 and values.is_floating_point()]
    return tables[0] if len(tables) == 1 else None


def _returns_rows(values: torch.Tensor, output: torch.Tensor | None, moved: torch.Tensor | None) -> bool:
    """Say whether an output is made of rows of ``values``, and these do not follow the tokens."""
    if (
        output is None
        or not output.is_floating_point()
        or output.dim() < 2
        or not output.numel()
        or output.shape[-1] != values.shape[1]
    ):
        return False
    if follows_tokens(output, moved):  # as the tokens' own embedding does, which is large
        return False
    return all(_holds(values, row) for row in output.flatten(0, -2).unique(dim=0))


def _holds(values: torch.Tensor, row: torch.Tensor) -> bool:
    """Say whether a row is among ``values``; those that begin as it does are compared whole."""
    same_passes = values[values[:, 0] == row[0]]
    return bool((same_passes == row).all(1).any())
