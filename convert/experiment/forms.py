"""Forms in which a module returns rows: as ``[batch, seq, *shape]``, with two axes swapped, or with Nones behind."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Form:
    """The form of an output that is not the rows themselves.

    Attributes:
        swapped: two axes that are swapped in the output; empty where none are.
        length: of the tuple whose first part the rows are, and whose others are None; 0 where the rows are no part.
    """

    swapped: list[int]
    length: int

    def rows(self, output: Any) -> torch.Tensor:
        """Return an output's rows, ``[batch, seq, *shape]``."""
        first: torch.Tensor = output[0] if self.length else output
        return first.transpose(*self.swapped) if self.swapped else first

    def output(self, rows: torch.Tensor) -> Any:
        """Return rows in this form."""
        made = rows.transpose(*self.swapped).contiguous() if self.swapped else rows
        return (made, *[None] * (self.length - 1)) if self.length else made


PLAIN = Form([], 0)


def form_of(output: Any, batch: int, seq: int) -> Form | None:
    """Return the form of what a module returns for ``[batch, seq]`` tokens; None where it is more than a tensor."""
    if isinstance(output, torch.Tensor):
        return Form(swapped_axes(output, batch, seq), 0)
    if isinstance(output, tuple) and output and all(part is None for part in output[1:]):
        return Form(swapped_axes(output[0], batch, seq), len(output)) if isinstance(output[0], torch.Tensor) else None
    return None


def swapped_axes(tensor: torch.Tensor, batch: int, seq: int) -> list[int]:
    """Return which axes are swapped in a tensor of rows: the sequence before the batch, or behind the values."""
    shape = tuple(tensor.shape)
    if len(shape) < 3 or shape[:2] == (batch, seq):
        return []
    if shape[:2] == (seq, batch):
        return [0, 1]
    return [1, 2] if (shape[0], *shape[2:]) == (batch, seq) else []
