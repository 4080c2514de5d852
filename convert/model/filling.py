"""Values for a skeleton's weights, and products with large ones in the time of a few values each.

An experiment needs weights of which no two are the same, and that keep the scale of signals: a long random sequence has
them at every offset. It asks what depends on what, whatever the values: products with a large weight are those of a
nearly empty one of the same shape, in which every input has a value, every output has one, and all others are zero.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prefold.convert.errors import UnsupportedModel

# Repeating a random sequence fills memory at the speed of a copy; its length is a prime, so that the rows of
# a weight, whose lengths are not, all differ.
_LENGTH = 1_000_003
# Weights of so many values, and more, share memory: 16 MiB in fp32.
LARGE = 1 << 22
# What an experiment fills memory with: 8 GiB in fp32. PaLM's largest weight has 1.4e9 values.
_MOST = 1 << 31
# Values between the beginnings of two that share it: a matrix product wants its operands aligned, to 64 bytes at most.
_STEP = 48


def allocated(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return memory for a tensor, which takes none before it is written.

    Raises:
        UnsupportedModel: there is no such memory.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # the allocator's has no class of its own
        raise UnsupportedModel(
            [f"its config asks for a tensor {list(shape)}, which is more than this machine can address"]
        ) from error


def require_fillable(model: nn.Module, aside: Collection[nn.Module]) -> None:
    """Refuse first blocks whose buffers and small weights have too many values to be filled."""
    weights = [each for module in model.modules() if module not in aside for each in module.parameters(recurse=False)]
    filled = [weight for weight in weights if not _is_window(weight)] + list(model.buffers())
    _require_few(sum(tensor.numel() for tensor in filled))


def _require_few(values: int) -> None:
    if values > _MOST:
        raise UnsupportedModel([f"its config asks for {values:,} values in its first blocks: prefold takes {_MOST:,}"])


def windows(modules: Iterable[nn.Module]) -> None:
    """Give all large weights of some modules, still on the meta device, memory that they share.

    Each is a window into one random sequence, some values further on than the one before; so is each row of a matrix,
    and each expert of a weight ``[experts, ...]``. Nothing may write to them.
    """
    sharing: dict[torch.dtype, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in modules:
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta and _is_window(weight):
                sharing[weight.dtype].append((module, name))
    for places in sharing.values():
        _share(places)


def _is_window(weight: torch.Tensor) -> bool:
    return weight.dim() > 1 and weight.numel() >= LARGE


def _share(places: list[tuple[nn.Module, str]]) -> None:
    """Replace weights of one type by windows into one sequence; the widest keeps its input's scale."""
    weights = [getattr(module, name) for module, name in places]
    length = max(map(_extent, weights)) + _STEP * len(weights)
    _require_few(length)
    sequence = allocated([length], weights[0].dtype)
    _repeat(sequence, _sample() * max(weight.shape[-1] for weight in weights) ** -0.5)
    memory = sequence.view(torch.uint8).numpy()
    for index, ((module, name), weight) in enumerate(zip(places, weights, strict=True)):
        # A storage of its own for each: what is counted of reads is counted by where a storage begins.
        offset = index * _STEP * weight.element_size()
        part = torch.frombuffer(memory, dtype=weight.dtype, count=_extent(weight), offset=offset)
        setattr(module, name, nn.Parameter(part.as_strided(weight.shape, _strides(weight)), requires_grad=False))


def _strides(weight: torch.Tensor) -> tuple[int, ...]:
    return (_STEP, *weight.stride()[1:])


def _extent(weight: torch.Tensor) -> int:
    """Return the number of values from the first to the last of a weight's window."""
    return 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, _strides(weight), strict=True))


def fill(model: nn.Module, aside: Collection[nn.Module], embedding_rows: int) -> None:
    """Fill all weights but the large ones; of embeddings some rows, of other modules that are set ``aside`` nothing.

    Large matrices are marked for thin products, those that are set aside, too.
    """
    sample = _sample()
    for module in model.modules():
        is_embedding = isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False):
            if is_embedding or (module not in aside and not _is_window(weight)):
                values = weight.data[:embedding_rows] if is_embedding else weight.data
                # A matrix keeps its input's scale; a vector is a gain or a bias.
                scaled = sample * max(weight.shape[-1], 1) ** -0.5 if weight.dim() > 1 else 1 + sample / 10
                _repeat(values.view(-1), scaled)
                sample = sample.roll(7919)
    for number, weight in enumerate(model.parameters()):
        if weight.dim() == 2 and _is_window(weight):
            mark(weight, number)


def _sample() -> torch.Tensor:
    return torch.randn(_LENGTH, generator=torch.Generator().manual_seed(0))


def _repeat(flat: torch.Tensor, sample: torch.Tensor) -> None:
    for start in range(0, flat.numel(), _LENGTH):
        piece = flat[start : start + _LENGTH]
        piece.copy_(sample[: piece.numel()])


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
