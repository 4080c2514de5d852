"""How far two models' logits are apart, and how far either is from the source in fp64."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

# Beyond this, fp64 does not say the same with fewer errors, but something else: another expert, another bucket.
_NOISE = 1e-6


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite where one alone is not a number.

    Raises:
        ValueError: nothing that is expected is finite.
    """
    if got.shape != expected.shape or not torch.equal(got.isfinite(), expected.isfinite()):
        return float("inf")
    known = expected.isfinite()
    if not known.any():
        raise ValueError("the source says nothing finite")
    return float((got - expected)[known].abs().max() / expected[known].abs().max().clamp_min(1e-30))


@dataclass(frozen=True)
class Errors:
    """Errors against fp64: the largest one, the sum of their squares, and the sum of the true values' squares."""

    largest: float
    squares: float
    scale: float

    @property
    def nmse(self) -> float:
        """Return the mean squared error, normalized by the mean square of the true values."""
        return self.squares / self.scale if self.scale else float("inf")

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(max(self.largest, other.largest), self.squares + other.squares, self.scale + other.scale)


def errors(got: torch.Tensor, true: torch.Tensor) -> Errors:
    """Compare logits with the true ones, wherever these are finite."""
    known = true.isfinite()
    apart = (got.double() - true)[known]
    return Errors(float(apart.abs().max()), float(apart.square().sum()), float(true[known].square().sum()))


def is_noise(source: Errors) -> bool:
    """Tell whether a source's errors are those of rounding, so that fp64 is a reference for it."""
    return source.nmse <= _NOISE


class _Fp64(TorchFunctionMode):
    """Keep a model that computes a part in fp32, whatever its dtype, from doing so: fp32 means fp64 here."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        named = {name: _doubled(value) for name, value in (kwargs or {}).items()}
        return function(*map(_doubled, args), **named)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_fp64(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Yield a copy of a model whose every step is in fp64, as long as the context lasts."""
    double: Any = copy.deepcopy(model).double()
    double.config.dtype = torch.float64
    if double._can_set_experts_implementation():
        double.set_experts_implementation("eager")  # the grouped product has no fp64
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Fp64():
            yield double
    finally:
        torch.set_default_dtype(default)
