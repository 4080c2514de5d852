"""Norms: recognized by what they do to a tensor, not by their class."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from prefold.convert.errors import ModelFailed, model_code
from prefold.convert.experiment.tokens import same_rows
from prefold.convert.experiment.trace import Call


@dataclass(frozen=True)
class Norm:
    """A layer norm or an RMS norm: ``scale(x) * centre(x) * gain + shift``.

    Attributes:
        module: its name in the model.
        centred: it takes the mean off first.
        eps: added to the mean square before its root is taken.
    """

    module: str
    centred: bool
    eps: float

    def centre(self, values: torch.Tensor) -> torch.Tensor:
        """Take the mean of the last axis off, if the norm does."""
        return values - values.mean(-1, keepdim=True) if self.centred else values

    def standardized(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``scale(x) * centre(x)``."""
        centred = self.centre(values)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)


def gain_and_shift(module: nn.Module, norm: Norm, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure, in float64, what a norm multiplies by and what it adds, ``[width]`` each.

    Raises:
        ModelFailed: the module takes something else than one tensor, or returns another shape.
    """
    wide = copy.deepcopy(module).double()
    device = next(iter([*wide.parameters(), *wide.buffers()]), torch.empty(0)).device
    signs = torch.ones(1, 1, width, dtype=torch.float64, device=device)
    signs[..., ::2] = -1
    with torch.no_grad():
        shift = _answer(wide, torch.zeros_like(signs))
        gain = (_answer(wide, signs) - shift) / norm.standardized(signs)
    return gain.flatten().double(), shift.flatten().double()


def _answer(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return what a module makes of a tensor, which has to be one of the same shape."""
    with model_code():
        output = module(values)
    if not isinstance(output, torch.Tensor) or output.shape != values.shape:
        raise ModelFailed("it does not return a tensor of the shape that it takes")
    return output


def find_norm(module: nn.Module, name: str, call: Call) -> Norm | None:
    """Say which norm a module is; None where it is none.

    ``eps`` is the one among the module's own numbers with which small values come out as they do.
    """
    taken, output = call.taken, call.output
    if taken is None or output is None or output.shape != taken.shape or any(True for _ in module.children()):
        return None
    numbers = {value for value in vars(module).values() if isinstance(value, float)}
    for centred in (True, False):
        for eps in sorted(numbers):
            norm = Norm(name, centred, eps)
            if _explains(norm, module, taken, output):
                return norm
    return None


@torch.no_grad()
def _explains(norm: Norm, module: nn.Module, taken: torch.Tensor, output: torch.Tensor) -> bool:
    try:
        gain, shift = gain_and_shift(module, norm, taken.shape[-1])
        small = taken.double() * norm.eps**0.5  # here eps counts as much as the values do
        expected = norm.standardized(small) * gain + shift
        got = _answer(copy.deepcopy(module).double(), small)
    except ModelFailed:
        return False
    large = norm.standardized(taken.double()) * gain + shift
    return same_rows(output.double(), large) and same_rows(got.double(), expected)
