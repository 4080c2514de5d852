"""Bytes of parameters that a decode step reads: by formula, and measured on the running model.

The shape of the formula is the paper's (Graef 2024, section 1), with every parameter counted: biases and norm gains,
too. The kind of read of a parameter is measured on the skeleton, not assumed: a weight is read once in a step, a
look-up reads a row for each token, and of experts only those that a token chose are read.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from prefold.convert.errors import model_code
from prefold.convert.experiment.trace import first_tensor
from prefold.convert.fold.layout import Cut, Sum
from prefold.convert.model.inputs import whole_inputs
from prefold.convert.model.running import hooks
from prefold.convert.model.skeleton import Stack
from prefold.convert.model.ties import Ties

_aten = torch.ops.aten
# Operations that read, of their first argument, only the rows that their indices name.
_LOOK_UPS = {_aten.embedding.default: 1, _aten.index_select.default: 2, _aten.index.Tensor: 1}


class Meter(TorchDispatchMode):
    """Counts, while it is active, the reads of a model's parameters.

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
        """Bytes read of each parameter by operations that read all of their argument."""
        return {name: sum(size for _, size in parts) for name, parts in self._whole.items()}

    @property
    def total(self) -> int:
        """Bytes of parameters touched."""
        return sum(self.whole.values()) + sum(self.gathered.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its reads."""
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
    """Yield a model's parameters, and the tables of a folded one that are not on its device."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        table = getattr(getattr(module, "rows", None), "table", None)
        if isinstance(table, torch.Tensor):
            yield f"{name}.weight", table


def _distinct(argument: torch.Tensor) -> int:
    """Count the values in memory that a tensor shows; one repeated by a stride of 0 counts once."""
    return prod(size for size, stride in zip(argument.shape, argument.stride(), strict=True) if stride)


def _experts_used(weights: torch.Tensor, ends: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``[experts, ...]`` weights whose group of rows, which ends at ``ends``, is not empty."""
    counts = ends.diff(prepend=ends.new_zeros(1))
    size = weights[0].numel() * weights.element_size()
    for expert in counts.nonzero().flatten().tolist():
        yield int(weights[expert].storage_offset()), size


def _is_view(func: Any) -> bool:
    """Return whether the operation returns its input's memory unread, as ``t``, ``view`` and ``select`` do."""
    aliases = [argument.alias_info for argument in func._schema.arguments]
    returned = [result.alias_info for result in func._schema.returns]
    shared = any(alias is not None and not alias.is_write for alias in aliases)
    return shared and any(alias is not None for alias in returned)


@contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Count the parameter reads of the block."""
    with torch.no_grad(), Meter(model) as meter:
        yield meter


BATCHES = (1, 16, 256, 1024)
# Beyond this batch a table that reads no more than the weights at any smaller one never will.
_ENDLESS = 1 << 40
# Weights of experts are stacked, [experts, out, in]: what a step reads of them depends on what its tokens choose.
_EXPERTS_DIM = 3


@dataclass(frozen=True)
class Parameter:
    """One parameter of the whole model and how a decode step reads it.

    Attributes:
        units: size of one of its values, as a multiple of the model's dtype: 2 for float32 in a model of 16 bits.
        per_token: values that one token looks up in it.
        fixed: values that are looked up once per step, whatever the batch.
        share: part of it that one token reads as a weight: 1 for most, experts chosen / experts for experts.
    """

    name: str
    shape: tuple[int, ...]
    per_token: float = 0
    fixed: float = 0
    share: float = 0
    units: float = 1

    @property
    def stored(self) -> float:
        """Its size in values of the model's dtype."""
        return self.values * self.units

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def read_as_weight(self, batch: int) -> float:
        """Values read of it as a weight; tokens choose their experts independently and evenly."""
        return self.values * (1 - (1 - self.share) ** batch)

    def reads(self, batch: int) -> float:
        """Values of the model's dtype that are read of it in one decode step of ``batch`` tokens."""
        return (self.read_as_weight(batch) + self.per_token * batch + self.fixed) * self.units


@dataclass(frozen=True)
class ParameterReads:
    """Every parameter of a model, tied ones once, and which of them the cuts eliminate.

    Attributes:
        routers: modules that choose experts; the paper leaves their weights out.
        looked_up: for every embedding, rows read for each token, and rows read once in a step.
        freed: the embeddings' own weights that are needed no more.
    """

    parameters: dict[str, Parameter]
    cuts: list[Cut]
    routers: list[str]
    looked_up: dict[str, tuple[float, float]]
    freed: list[str]

    @property
    def total(self) -> int:
        """The model's size in values of its dtype."""
        return round(sum(parameter.stored for parameter in self.parameters.values()))

    @property
    def has_experts(self) -> bool:
        """Whether the reads of a step depend on the experts that its tokens choose."""
        return any(0 < parameter.share < 1 for parameter in self.parameters.values())

    def inside(self, module: str) -> list[Parameter]:
        """Return the parameters of a module."""
        return [p for name, p in self.parameters.items() if name.startswith(f"{module}.")]

    @property
    def folded(self) -> list[Parameter]:
        """Weights that the tables replace, the embeddings' aside."""
        modules = {module for cut in self.cuts for module in cut.eliminated} - {cut.embedding for cut in self.cuts}
        inside = tuple(f"{module}." for module in modules)
        return [p for name, p in self.parameters.items() if name.startswith(inside) and name not in self.freed]

    @property
    def gone(self) -> int:
        """Size of all weights that leave the checkpoint, in values of the model's dtype."""
        embeddings = sum(self.parameters[name].stored for name in self.freed if name in self.parameters)
        return round(embeddings + sum(parameter.stored for parameter in self.folded))

    @property
    def made(self) -> int:
        """Values of all tensors that are stored in their place."""
        tables = sum(cut.rows * cut.stored_width for cut in self.cuts)
        return tables + sum(prod(shape) for cut in self.cuts for shape in cut.added.values())

    def is_router(self, parameter: Parameter) -> bool:
        """Return whether a parameter chooses experts."""
        return any(parameter.name.startswith(f"{router}.") for router in self.routers)

    def read_before(self, batch: int) -> float:
        """Values that one step reads of the folded weights, and of the embeddings' rows."""
        embeddings = [(cut, self.parameters.get(f"{cut.embedding}.weight")) for cut in self.cuts]
        rows = (batch * self._rows_for_token(cut) * cut.table.width for cut, _ in embeddings)
        own = (weight.fixed for _, weight in embeddings if weight)
        return sum(parameter.reads(batch) for parameter in self.folded) + sum(rows) + sum(own)

    def _rows_for_token(self, cut: Cut) -> float:
        """Return the number of rows that a shortest text looks up: more than one where it is longer, or is padded."""
        return self.looked_up[cut.embedding][0]

    def read_after(self, batch: int) -> float:
        """Values that one step reads in its place."""
        return batch * sum(self._rows_for_token(cut) * cut.stored_width for cut in self.cuts) + sum(
            self._read_of_sum(cut.sum, batch) for cut in self.cuts if cut.sum
        )

    def _read_of_sum(self, sum_: Sum, batch: int) -> float:
        rows = sum(per_token * batch + fixed for per_token, fixed in (self.looked_up[e.module] for e in sum_.look_ups))
        return sum_.width * (rows + sum_.steps)


@dataclass(frozen=True)
class Reads:
    """Values read in one decode step of ``batch`` tokens, before and after folding."""

    batch: int
    first_layer_before: float
    first_layer_after: float
    model_before: float
    model_after: float

    @property
    def first_layer_ratio(self) -> float:
        """How many times fewer values the first layer reads."""
        return self.first_layer_before / self.first_layer_after

    @property
    def model_saving(self) -> float:
        """Part of all reads that is saved; negative where folding reads more."""
        return 1 - self.model_after / self.model_before


def count_reads(census: ParameterReads, batch: int) -> Reads:
    """Count the reads of the first layer's folded part and of the whole model for one decode step."""
    before, after = census.read_before(batch), census.read_after(batch)
    model = sum(parameter.reads(batch) for parameter in census.parameters.values())
    return Reads(batch, before, after, model, model - before + after)


def break_even_batch(census: ParameterReads) -> int | None:
    """Return the largest batch at which folding does not read more than it saves; None where it never does."""
    low, high = 0, 1
    while _saves(census, high):
        low, high = high, high * 2
        if high > _ENDLESS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _saves(census, middle) else (low, middle)
    return low


def _saves(census: ParameterReads, batch: int) -> bool:
    return census.read_before(batch) >= census.read_after(batch)


@torch.no_grad()
def _step(model: PreTrainedModel, batch: int, cuts: list[Cut]) -> tuple[Meter, dict[str, int]]:
    """Run one step; returns its reads, and the number of rows that each look-up returned, embeddings at first."""
    embeddings = [cut.embedding for cut in cuts]
    names = [*embeddings, *(each.module for cut in cuts if cut.sum for each in cut.sum.look_ups)]
    rows = dict[str, int]()

    def count(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found = first_tensor(output)
            if name not in embeddings or name not in rows:  # two sides may call one embedding
                rows[name] = rows.get(name, 0) + (0 if found is None else found[..., 0].numel())

        return hook

    ids = cuts[0].texts(torch.arange(batch))
    with hooks(model, {}, {name: count(name) for name in names}), metered(model) as meter, model_code():
        model(**whole_inputs(model, ids))
    return meter, rows


def measure_parameter_reads(
    shapes: dict[str, tuple[int, ...]],
    skeleton: PreTrainedModel,
    stacks: list[Stack],
    cuts: list[Cut],
    routers: list[str],
    ties: Ties,
    units: dict[str, float],
) -> ParameterReads:
    """Measure one step of the skeleton and apply its kinds of reads to every parameter of the whole model.

    ``shapes`` are the whole model's; the skeleton has one block of each kind of the ``stacks``. ``units`` are those of
    parameters that have another type than the model.
    """
    (one, rows_of_one), (two, rows_of_two) = (_step(skeleton, batch, cuts) for batch in (1, 2))
    itemsize = skeleton.dtype.itemsize
    parameters: dict[str, Parameter] = {}
    for name, shape in shapes.items():
        twin = _twin(name, stacks)
        first, second = (meter.gathered.get(twin, 0) / itemsize for meter in (one, two))
        whole, size = one.whole.get(twin, 0) / itemsize, max(prod(shape), 1)
        is_sliced = len(shape) < _EXPERTS_DIM and whole == two.whole.get(twin, 0) / itemsize
        part = whole % size if is_sliced else 0.0  # read beside the whole, as a row that the model's own code takes
        kinds = (second - first, 2 * first - second + part, (whole - part) / size)
        parameters[name] = Parameter(name, shape, *kinds, units=units.get(name, 1))
    looked_up = {
        name: (float(rows_of_two[name] - n), float(2 * n - rows_of_two[name])) for name, n in rows_of_one.items()
    }
    return ParameterReads(parameters, cuts, routers, looked_up, freed_by(ties))


def freed_by(ties: Ties) -> list[str]:
    """Return the names of the embeddings' own weights, if those are needed no more."""
    return [] if ties.remaining_owners else ties.shared


def _twin(name: str, stacks: list[Stack]) -> str:
    """Name the skeleton's parameter that stands for one of the whole model."""
    stack = next((stack for stack in stacks if name.startswith(f"{stack.name}.")), None)
    if stack is None:
        return name
    index, _, rest = name.removeprefix(f"{stack.name}.").partition(".")
    return f"{stack.name}.{stack.kinds[int(index)]}.{rest}"
