"""Count the bytes of parameters that a forward pass touches, operation by operation."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Operations that read, of their first argument, only the rows that their indices name.
_LOOK_UPS = {_aten.embedding.default: 1, _aten.index_select.default: 2, _aten.index.Tensor: 1}


class Meter(TorchDispatchMode):
    """Counts, while it is active, what is read of a model's parameters.

    A parameter, or the part of it that a view shows, counts once per pass however often it is used; a
    look-up counts the rows that it gathers, every time. Views themselves read nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {p.untyped_storage().data_ptr(): name for name, p in _weights(model)}
        self._whole: dict[str, set[tuple[int, int]]] = defaultdict(set)
        self.gathered: dict[str, int] = defaultdict(int)

    @property
    def whole(self) -> dict[str, int]:
        """Bytes read of each parameter by operations that take all of what they are given."""
        return {name: sum(size for _, size in parts) for name, parts in self._whole.items()}

    @property
    def total(self) -> int:
        """Bytes of parameters touched."""
        return sum(self.whole.values()) + sum(self.gathered.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it reads."""
        if not _is_view(func):
            for argument in tree_leaves((args, kwargs or {})):
                self._count(func, argument, args)
        return func(*args, **(kwargs or {}))

    def _count(self, func: Any, argument: Any, args: tuple[Any, ...]) -> None:
        if not isinstance(argument, torch.Tensor):
            return
        name = self._names.get(argument.untyped_storage().data_ptr())
        if name is None:
            return
        if func is _aten._grouped_mm.default and argument is args[1]:
            self._whole[name].update(_experts_used(argument, args[2]))
        elif func in _LOOK_UPS and argument is args[0]:
            rows = sum(index.numel() for index in tree_leaves(args[_LOOK_UPS[func]]))
            self.gathered[name] += rows * argument[0].numel() * argument.element_size()
        else:
            self._whole[name].add((int(argument.storage_offset()), _distinct(argument) * argument.element_size()))


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's parameters, and the tables of a folded one that are none since they are not on its device."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        table = getattr(getattr(module, "rows", None), "table", None)
        if isinstance(table, torch.Tensor):
            yield f"{name}.weight", table


def _distinct(argument: torch.Tensor) -> int:
    """Count the values in memory that a tensor shows, each once though it be repeated, as for every token."""
    return prod(size for size, stride in zip(argument.shape, argument.stride(), strict=True) if stride)


def _experts_used(weights: torch.Tensor, ends: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``[experts, ...]`` weights whose group of rows, which ends at ``ends``, is not empty."""
    counts = ends.diff(prepend=ends.new_zeros(1))
    size = weights[0].numel() * weights.element_size()
    for expert in counts.nonzero().flatten().tolist():
        yield int(weights[expert].storage_offset()), size


def _is_view(func: Any) -> bool:
    """Say whether the operation returns its input's memory unread, as ``t``, ``view`` and ``select`` do."""
    aliases = [argument.alias_info for argument in func._schema.arguments]
    returned = [result.alias_info for result in func._schema.returns]
    shared = any(alias is not None and not alias.is_write for alias in aliases)
    return shared and any(alias is not None for alias in returned)


@contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Count the parameter reads of what runs inside."""
    with torch.no_grad(), Meter(model) as meter:
        yield meter
