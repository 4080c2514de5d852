"""The stand-ins for keys and values that a tree-structured cache gives a model, and its refusals."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from prefold.tree.cache.masks import NAME
from prefold.tree.cache.pool import LayerStore
from prefold.tree.errors import CacheError, NoAttention, WrongAttention


class Refusals:
    """Methods and properties that models with other layers use: each is an error with what to do."""

    def _refuse_state(self, *_: Any, **__: Any) -> NoReturn:
        raise NoAttention("TreeCache holds keys and values: this model has layers that keep a state of another kind")

    has_previous_state = update_indexer = _refuse_state
    get_conv_state = update_conv_state = get_recurrent_state = update_recurrent_state = _refuse_state

    def _refuse_sides(self) -> NoReturn:
        raise WrongAttention(
            "TreeCache: an encoder-decoder model needs EncoderDecoderCache(TreeCache(...), DynamicCache())"
        )

    self_attention_cache = cross_attention_cache = is_updated = property(_refuse_sides)

    def early_initialization(self, *_: Any, **__: Any) -> None:
        """Refuse: what a cache for export is made of is fixed, and a tree's segments are not."""
        raise CacheError("TreeCache cannot be made before it is used, as exporting a model needs it")


MESSAGE = (
    f"TreeCache needs attn_implementation='{NAME}', and a model that hands its cached keys and values to transformers'"
    " AttentionInterface as they are"
)


class Update:
    """New keys and values of one layer, ``[batch, kv_heads, new, width]``, until its attention stores them."""

    def __init__(self, cache: Any, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.cache, self.layer, self.keys, self.values = cache, layer, keys, values
        self.step: Any = None  # the step that it was stored in

    def arrange(self, order: torch.Tensor | None) -> None:
        """Put the columns of every row in an order, ``[batch, new]``; None leaves them as they are."""
        if order is not None:
            self.keys, self.values = arranged(self.keys, order), arranged(self.values, order)

    @property
    def store(self) -> LayerStore:
        """The layer's earlier keys and values."""
        found: LayerStore = self.cache.stores[self.layer]
        return found


def arranged(states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return states, ``[batch, heads, new, width]``, whose columns are in an order for each row, ``[batch, new]``."""
    index = order.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


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
        """Return itself, for its own type and device."""
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
