"""Parts of a sum of look-ups: embeddings of anything but the token, and norms behind them."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from prefold.convert.errors import ModelFailed, model_code
from prefold.convert.experiment.forms import form_of
from prefold.convert.experiment.tokens import follows_tokens, same_rows
from prefold.convert.experiment.trace import Call, Trace


@dataclass(frozen=True)
class LookUp:
    """A module that returns rows of its ``weight``, ``[rows, width]``, chosen by anything but the token.

    The model multiplies them by ``factor`` before it adds them to the token's. Where they are ``mapped``, it takes
    both together through a linear map, and multiplies that.
    """

    module: str
    weight: str
    rows: int
    width: int
    factor: float = 1.0
    mapped: bool = False

    def returned(self, seen: Trace) -> list[torch.Tensor]:
        """Return its outputs in a pass, call by call."""
        return [call.tensor for call in seen.calls[self.module] if call.tensor is not None]


def find_look_ups(model: nn.Module, here: Trace, there: Trace) -> list[LookUp]:
    """Find the look-ups of a pass and its mirrored one: modules that return rows of their own tables."""
    found = []
    for name, module in model.named_modules():
        calls, moved = here.calls.get(name, []), there.calls.get(name, [])
        if not calls or len(calls) != len(moved) or any(call.form.swapped for call in calls):
            continue
        for weight, values in _tables(module):
            if all(_returns_rows(values, one.tensor, other.tensor) for one, other in zip(calls, moved, strict=True)):
                found.append(LookUp(name, weight, *values.shape))
    return found


def _tables(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return what may be a module's table: its only parameter of two dimensions, or, without any, its only buffer."""
    for held in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        tables = [(name, values) for name, values in held if values.dim() == 2 and values.is_floating_point()]
        if tables:
            return tables if len(tables) == 1 else []
    return []


def _returns_rows(values: torch.Tensor, output: torch.Tensor | None, moved: torch.Tensor | None) -> bool:
    """Return whether an output is made of rows of ``values``, times one number, that do not follow the tokens."""
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
    rows = output.flatten(0, -2).unique(dim=0)
    known = functional.normalize(values).nan_to_num()  # rows that a skeleton left as they were may hold anything
    nearest = values[(functional.normalize(rows) @ known.T).argmax(1)]
    return same_rows(rows, nearest * ((rows * nearest).sum() / nearest.square().sum()))


@dataclass(frozen=True)
class Norm:
    """A layer norm or an RMS norm: ``scale(x) * centre(x) * gain + shift``.

    Attributes:
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
    """Measure, in float64, a norm's gain and shift, ``[width]`` each.

    Raises:
        ModelFailed: the module takes more than one tensor, or returns another shape.
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
    """Run a module on a tensor, and require an output of the same shape."""
    with model_code():
        output = module(values)
    form = form_of(output, *values.shape[:2])
    if form is None or form.rows(output).shape != values.shape:
        raise ModelFailed("it does not return a tensor of the shape that it takes")
    return form.rows(output)


def find_norm(module: nn.Module, name: str, call: Call) -> Norm | None:
    """Return a module as a norm; None where it is none.

    ``eps`` is the one among the module's own numbers with which small values come out as they do.
    """
    taken, output = call.taken, call.output
    if taken is None or output is None or output.shape != taken.shape or call.form.swapped or _has_parts(module):
        return None
    numbers = {value for value in vars(module).values() if isinstance(value, float)}
    for centred in (True, False):
        for eps in sorted(numbers):
            norm = Norm(name, centred, eps)
            if _explains(norm, module, taken, output):
                return norm
    return None


def _has_parts(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


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
