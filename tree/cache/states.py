"""What a layer gets back from the cache in place of its keys and values."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from prefold.tree.cache.masks import NAME
from prefold.tree.errors import WrongAttention

MESSAGE = (
    f"TreeCache needs attn_implementation='{NAME}', and a model that hands its cached keys and values to transformers'"
    " AttentionInterface as they are"
)


class Update:
    """New keys and values of one layer, ``[batch, kv_heads, new, width]``, until its attention stores them."""

    def __init__(self, cache: Any, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.cache, self.layer, self.keys, self.values = cache, layer, keys, values
        self.step: Any = None  # the step that it was stored in


class States:
    """Stands for all keys, or all values, of a layer: it has a shape and no elements."""

    def __init__(self, update: Update, new: torch.Tensor, columns: int) -> None:
        self.update = update
        self.shape = torch.Size((*new.shape[:2], columns + new.shape[2], new.shape[3]))
        self.dtype, self.device, self.ndim = new.dtype, new.device, new.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one part of it."""
        return self.shape if dim is None else self.shape[dim]

    def to(self, *args: Any, **_: Any) -> "States":
        """Stay as it is, where nothing else is asked for."""
        if any(arg not in (self.dtype, self.device, self.device.type) for arg in args):
            _refuse()
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> NoReturn:
        _refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()

    def __getitem__(self, _: Any) -> Any:
        _refuse()

    def __len__(self) -> int:
        return self.shape[0]


def _refuse(*_: Any) -> NoReturn:
    raise WrongAttention(MESSAGE)


for _operator in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "neg", "matmul", "rmatmul", "iter"):
    setattr(States, f"__{_operator}__", _refuse)
