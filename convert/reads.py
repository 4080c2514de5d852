"""How many values of parameters a decode step reads, by formula.

The shape of the formula is the paper's (Graef 2024, section 1), with every parameter counted: biases and
norm gains too. What kind of read a parameter gets is measured on the skeleton, not assumed: a weight is read
once per step, a look-up reads a row per token, and of experts only those that a token chose are read.
"""

from dataclasses import dataclass
from math import prod

import torch
from transformers import PreTrainedModel

from prefold.convert.cut import Cut
from prefold.convert.meter import Meter, metered
from prefold.convert.skeleton import Stack

BATCHES = (1, 16, 256, 1024)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the whole model and how a decode step reads it.

    Attributes:
        name: in the model.
        shape: its shape.
        per_token: values that one token looks up in it.
        fixed: values that are looked up once per step, whatever the batch.
        share: part of it that one token reads as a weight: 1 for most, experts chosen / experts for experts.
    """

    name: str
    shape: tuple[int, ...]
    per_token: float = 0
    fixed: float = 0
    share: float = 0

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def read_as_weight(self, batch: int) -> float:
        """Values read of it as a weight; tokens choose their experts independently and evenly."""
        return self.values * (1 - (1 - self.share) ** batch)

    def reads(self, batch: int) -> float:
        """Values read of it in one decode step of ``batch`` tokens."""
        return self.read_as_weight(batch) + self.per_token * batch + self.fixed


@dataclass(frozen=True)
class Census:
    """Every parameter of a model, and which of them the cut eliminates.

    Attributes:
        parameters: by name, tied ones once.
        cut: what is folded.
        routers: modules that choose experts; the paper leaves their weights out.
    """

    parameters: dict[str, Parameter]
    cut: Cut
    routers: list[str]

    @property
    def total(self) -> int:
        """Values in the model."""
        return sum(parameter.values for parameter in self.parameters.values())

    @property
    def has_experts(self) -> bool:
        """Whether what a step reads depends on which experts the tokens choose."""
        return any(0 < parameter.share < 1 for parameter in self.parameters.values())

    def inside(self, module: str) -> list[Parameter]:
        """Return the parameters of a module."""
        return [p for name, p in self.parameters.items() if name.startswith(f"{module}.")]

    @property
    def embedding(self) -> list[Parameter]:
        """The input embedding's parameters."""
        return self.inside(self.cut.embedding)

    @property
    def folded(self) -> list[Parameter]:
        """Weights that the table replaces, the embedding's aside."""
        modules = self.cut.eliminated[1:]
        return [parameter for module in modules for parameter in self.inside(module)]

    def is_router(self, parameter: Parameter) -> bool:
        """Say whether a parameter chooses experts."""
        return any(parameter.name.startswith(f"{router}.") for router in self.routers)


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


def count_reads(census: Census, batch: int) -> Reads:
    """Count the reads of the first layer's folded part and of the whole model for one decode step."""
    before = sum(parameter.reads(batch) for parameter in census.folded)
    before += sum(p.per_token * batch + p.fixed for p in census.embedding)
    after = float(batch * census.cut.row_width)
    model = sum(parameter.reads(batch) for parameter in census.parameters.values())
    return Reads(batch, before, after, model, model - before + after)


def break_even_batch(census: Census) -> int | None:
    """Return the largest batch at which folding does not read more than it saves; None where it never does."""
    if census.cut.row_width <= census.cut.embedding_width:
        return None
    low, high = 0, 1
    while _saves(census, high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _saves(census, middle) else (low, middle)
    return low


def _saves(census: Census, batch: int) -> bool:
    reads = count_reads(census, batch)
    return reads.first_layer_before >= reads.first_layer_after


@torch.no_grad()
def _step(model: PreTrainedModel, ids: torch.Tensor) -> Meter:
    with metered(model) as meter:
        model(input_ids=ids, use_cache=False)
    return meter


def take_census(
    shapes: dict[str, tuple[int, ...]],
    skeleton: PreTrainedModel,
    stack: Stack,
    kept: list[int],
    cut: Cut,
    routers: list[str],
) -> Census:
    """Measure one step of the skeleton and apply what was found to every parameter of the whole model.

    ``shapes`` are the whole model's; ``kept`` are the blocks that the skeleton still has, one of each kind.
    """
    one, two = (_step(skeleton, torch.arange(batch).view(batch, 1)) for batch in (1, 2))
    itemsize = skeleton.dtype.itemsize
    parameters: dict[str, Parameter] = {}
    for name, shape in shapes.items():
        twin = _twin(name, stack, kept)
        first, second = (meter.gathered.get(twin, 0) // itemsize for meter in (one, two))
        share = one.whole.get(twin, 0) / itemsize / max(prod(shape), 1)
        parameters[name] = Parameter(name, shape, second - first, 2 * first - second, share)
    return Census(parameters, cut, routers)


def _twin(name: str, stack: Stack, kept: list[int]) -> str:
    """Name, in the skeleton, the parameter that stands for one of the whole model."""
    prefix = f"{stack.name}."
    if not name.startswith(prefix):
        return name
    index, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept.index(stack.kinds[int(index)])}.{rest}"
