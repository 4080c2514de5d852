"""Products with large weights, in the time of a few values each.

An experiment asks what depends on what, whatever the values of the weights. Products with a large weight are those of
a nearly empty one of the same shape: every input has a value in it, every output has one, and all others are zero.
"""

from math import sqrt
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def mark(weight: torch.Tensor, number: int) -> None:
    """Let products with a matrix be thin while ``ThinProducts`` is active; each ``number`` has values of its own."""
    values = torch.randn(max(weight.shape), generator=torch.Generator().manual_seed(number))
    weight.diagonal_values = values  # type: ignore[attr-defined]


class ThinProducts(TorchFunctionMode):
    """Takes the place of ``linear`` and ``addmm`` while it is active, for matrices that are marked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, or a thin product in its place."""
        if func is functional.linear and _is_marked(args, 1):
            product = thin_product(args[0], args[1], len(args[1]))
            biases = [*args[2:], *(kwargs or {}).values()]
            return sum((bias for bias in biases if bias is not None), product)
        if func is torch.addmm and _is_marked(args, 2) and not kwargs:
            return args[0] + thin_product(args[1], args[2], args[2].shape[1])
        return func(*args, **(kwargs or {}))


def _is_marked(args: Any, index: int) -> bool:
    return len(args) > index and hasattr(args[index], "diagonal_values")


def thin_product(values: torch.Tensor, weight: torch.Tensor, out: int) -> torch.Tensor:
    """Return ``values``, ``[..., in]``, times a marked matrix, ``[..., out]``.

    The diagonal begins anew where it reaches the shorter side's end, and keeps the scale of the values.
    """
    torch.empty_like(weight, device="meta")  # an operation on the weight, lest a meter miss that it is read
    diagonal: torch.Tensor = weight.diagonal_values.to(values.dtype)  # type: ignore[attr-defined]
    width = values.shape[-1]
    if out >= width:
        return values.repeat(*[1] * (values.dim() - 1), -(-out // width))[..., :out] * diagonal
    pieces: torch.Tensor = functional.pad(values * diagonal, (0, -width % out)).unflatten(-1, (-1, out))
    return pieces.sum(-2) * sqrt(out / width)
