"""Which values of a table's rows one rank holds, and which of vLLM's modules read them.

vLLM fuses projections, splits them over ranks and renames them. What it does to a projection is not said here again:
its own loader is given weights that tell their rows apart, and where they end up says it all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase

from prefold.runtime.columns_prefold import columns_of, residual_start, unread_of

# Digits of a row's number that every floating-point type holds exactly.
_BASE, _DIGITS = 128, 3

Load = Callable[[Iterable[tuple[str, torch.Tensor]]], set[str]]


class NotExpressibleError(ValueError):
    """vLLM's class for the source has no module that a folded one could stand in for."""


@dataclass
class Layout:
    """What is looked up on one rank.

    Attributes:
        embedding: the module that becomes the look-up.
        values: of the table's row, which this rank holds, in this order.
        residual: how many of them, from the first, the embedding returns; None if nobody reads these.
        readers: by module, the values that it returns, as begin and end in ``values``.
        passed: modules that hand their input on.
        zeros: modules that return zeros.
    """

    embedding: str
    values: torch.Tensor
    residual: int | None
    readers: dict[str, tuple[int, int]] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)


class _Planner:
    """Finds the layout of one fold in one of vLLM's models."""

    def __init__(self, model: nn.Module, load: Load, fold: dict[str, Any]) -> None:
        self._model, self._load, self._fold = model, load, fold
        self._slices: dict[str, torch.Tensor] = {}  # of fused projections, values of the table's row, -1 where unknown
        self._free = list[dict[str, Any]]()  # columns that are no projection in vLLM
        self._passed = list[str]()

    def layout(self) -> Layout:
        for column in columns_of(self._fold):
            if self._is_projection(column["module"]):
                self._fill(column["module"], column["start"], prod(column["shape"]))
            else:
                self._free.append(column)
        for dropped in unread_of(self._fold):
            if self._is_projection(dropped["module"]):
                column = self._successor(dropped)
                self._fill(dropped["module"], column["start"], prod(dropped["shape"]))
                self._passed.append(self._name(column["module"]))
            else:
                self._passed.append(self._name(dropped["module"]))
        return self._laid_out()

    def _laid_out(self) -> Layout:
        table, readers = self._fold["table"], dict[str, tuple[int, int]]()
        start, width = residual_start(self._fold), table["width"]
        parts = [] if start is None else [torch.arange(start, start + width)]
        whole = {self._name(each["module"]): _span(each) for each in self._free}
        for name, part in (whole | self._slices).items():
            if part.lt(0).any():
                raise NotExpressibleError(f"{name}: vLLM computes it together with what is not folded")
            begin = sum(map(len, parts))
            readers[name] = begin, begin + len(part)
            parts.append(part)
        zeros = [self._name(each["module"]) for each in self._fold["merged"]]
        embedding, residual = self._name(table["module"]), None if start is None else width
        return Layout(embedding, torch.cat(parts), residual, readers, self._passed, zeros)

    def _is_projection(self, module: str) -> bool:
        return isinstance(self._model.get_submodule(self._name(module)), LinearBase)

    def _successor(self, dropped: dict[str, Any]) -> dict[str, Any]:
        """Take the column that followed a dropped projection, as a norm of its heads does: it holds what both say."""
        parent, width = dropped["module"].rpartition(".")[0], prod(dropped["shape"])
        for column in self._free:
            if column["module"].rpartition(".")[0] == parent and prod(column["shape"]) == width:
                self._free.remove(column)
                return column
        raise NotExpressibleError(
            f"{dropped['module']}: dropped, and no column beside it is as wide: store it (prefold convert --cut)"
        )

    def _fill(self, module: str, start: int, width: int) -> None:
        """Ask vLLM's loader which rows of a projection this rank keeps, and where."""
        name = self._name(module)
        linear: Any = self._model.get_submodule(name)
        if getattr(linear, "gather_output", False) and linear.tp_size > 1:
            raise NotExpressibleError(f"{name}: its outputs are gathered from all ranks")
        held = linear.weight.data
        if held.shape[-1] != linear.input_size:
            raise NotExpressibleError(f"{name}: its inputs are parted over ranks")
        held.fill_(-1)
        numbered = torch.zeros(width, linear.input_size)
        for digit in range(_DIGITS):
            numbered[:, digit] = torch.arange(width) // _BASE**digit % _BASE
        loaded = self._load([(f"{module}.weight", numbered)])
        if loaded != {f"{name}.weight"}:
            raise NotExpressibleError(f"{module}: vLLM loads it into {', '.join(sorted(loaded)) or 'nothing'}")
        rows = sum(held[:, digit].to("cpu", torch.int64) * _BASE**digit for digit in range(_DIGITS))
        taken = held[:, 0].to("cpu").ge(0)
        known = self._slices.setdefault(name, torch.full((len(held),), -1))
        known[taken] = start + torch.as_tensor(rows)[taken]

    def _name(self, module: str) -> str:
        """Return vLLM's name of a module, or of the fused one that it is a part of."""
        mapper = getattr(self._model, "hf_to_vllm_mapper", None)
        mapped = mapper.map_name(f"{module}.weight") if mapper else f"{module}.weight"
        name = (mapped or module).removesuffix(".weight")
        parent, _, last = name.rpartition(".")
        packed: dict[str, list[str]] = getattr(self._model, "packed_modules_mapping", {})
        found = [fused for fused, parts in packed.items() if last in parts]
        for each in (name, *(f"{parent}.{fused}" for fused in found)):
            if any(each == there for there, _ in self._model.named_modules()):
                return each
        raise NotExpressibleError(f"{module}: {type(self._model).__name__} has no such module")


def _span(column: dict[str, Any]) -> torch.Tensor:
    return torch.arange(column["start"], column["start"] + prod(column["shape"]))


def plan(model: nn.Module, load: Load, fold: dict[str, Any]) -> Layout:
    """Find which values of the table's rows this rank needs, and where they are read.

    Args:
        model: one of vLLM's, with nothing swapped and no weights loaded yet.
        load: its ``load_weights``.
        fold: an entry of the ``prefold`` section.

    Raises:
        NotExpressibleError: what vLLM runs in place of a folded module is not that module alone.
    """
    return _Planner(model, load, fold).layout()
