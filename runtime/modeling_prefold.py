"""Run a folded checkpoint: the first layer's token-pure modules become slices of one looked-up row.

This file travels in every folded checkpoint and needs torch and transformers alone. ``PrefoldX`` is
derived from transformers' own ``X`` the moment it is asked for, so one file serves every architecture.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

PREFIX = "Prefold"
FORMAT = 1


class FoldedInputError(ValueError):
    """A folded model was asked for something that only the unfolded source can do."""


class Row:
    """The looked-up rows of the forward pass under way, ``[batch, seq, row_width]``, or None between passes.

    Every thread has its own, so that passes side by side do not read each other's.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()  # not a base class: writes of compiled code would miss its storage

    def __reduce__(self) -> tuple[type["Row"], tuple[()]]:
        return Row, ()  # a copy of a model starts between passes

    @property
    def values(self) -> torch.Tensor | None:
        """The rows that the calling thread looked up."""
        return getattr(self._of_thread, "values", None)

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._of_thread.values = values

    def forget(self, *_: Any) -> None:
        """Drop what an interrupted pass left; a hook that runs before every pass."""
        self.values = None

    def read(self, *, last: bool) -> torch.Tensor:
        """Return the rows; the last reader lets go of them, so that none outlives its forward pass."""
        values = self.values
        if values is None:
            raise FoldedInputError(
                "no token ids were looked up in this forward pass: a folded model takes input_ids, not inputs_embeds"
            )
        if last:
            self.values = None
        return values


class Folded(nn.Module):
    """Common to all stand-ins: empty weights, for callers that ask a module for its dtype or initialize it."""

    weight: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        for part in ("weight", "bias"):
            self.register_buffer(part, torch.empty(0), persistent=False)

    def extra_repr(self) -> str:
        """Say what became of the module, since adapters print this when they refuse it."""
        return f"{self.name} is folded into the table: it has no weights to train or to adapt"


class Table(Folded):
    """Stands for the input embedding: fetches whole rows and returns their residual slice."""

    def __init__(self, name: str, row: Row, rows: int, row_width: int, start: int | None, width: int) -> None:
        """``start`` is None where nobody reads the embedding itself, only what was made of it."""
        super().__init__(name)
        self.row, self.start, self.width = row, start, width
        self.weight = nn.Parameter(torch.empty(rows, row_width), requires_grad=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ``[batch, seq]`` ids; returns ``[batch, seq, width]``."""
        if self.training:
            raise FoldedInputError("a folded model cannot be trained: call eval(), or train the source and fold again")
        values = functional.embedding(input_ids, self.weight)
        self.row.values = values
        if self.start is None:
            return values[..., :1].expand(*input_ids.shape, self.width)
        return values[..., self.start : self.start + self.width]


class Column(Folded):
    """Stands for a folded module: returns its slice of the row instead of computing it."""

    def __init__(self, name: str, row: Row, start: int, shape: list[int], *, masked: bool, last: bool) -> None:
        super().__init__(name)
        self.row, self.start, self.shape, self.masked, self.last = row, start, shape, masked, last
        self.stop = start + int(torch.Size(shape).numel())

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]``; of the input only its zeros at padded positions count, if ``masked``."""
        values = self.row.read(last=self.last)[..., self.start : self.stop]
        if len(self.shape) > 1:
            values = values.unflatten(-1, self.shape)
        values = values.to(self.weight.device)
        return values * hidden_states[..., :1] if self.masked else values


class Dropped(Folded):
    """Stands for a module whose output nobody reads any more: returns something of its shape, for free."""

    def __init__(self, name: str, shape: list[int]) -> None:
        super().__init__(name)
        self.shape = shape

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]`` without reading or writing memory."""
        if list(hidden_states.shape[2:]) == self.shape:
            return hidden_states
        single: torch.Tensor = hidden_states.flatten(2)[..., :1].unflatten(-1, [1] * len(self.shape))
        return single.expand(-1, -1, *self.shape)


class Shown(Dropped):
    """Stands for a dropped norm in a block that zeroes padded positions behind it: tells columns which those are."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ones, ``[batch, seq, *shape]``."""
        return hidden_states.new_ones(()).expand(*hidden_states.shape[:2], *self.shape)


class Merged(Dropped):
    """Stands for an FFN that is part of the residual slice already: adds nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return zeros, ``[batch, seq, *shape]``: memory of their own, for blocks that add to them in place."""
        return hidden_states.new_zeros(*hidden_states.shape[:2], *self.shape)


def fold_modules(model: nn.Module, fold: dict[str, Any]) -> Row:
    """Replace the modules that the ``prefold`` section of a folded ``config.json`` names; returns their shared row."""
    row, table, columns = Row(), fold["table"], fold["columns"]
    stand_ins: dict[str, nn.Module] = {
        table["module"]: Table(table["module"], row, table["rows"], table["row_width"], table["start"], table["width"])
    }
    for column in columns:
        name, last = column["module"], column is columns[-1]
        stand_ins[name] = Column(name, row, column["start"], column["shape"], masked=column["masked"], last=last)
    dropped = Shown if any(column["masked"] for column in columns) else Dropped
    for kind, entries in ((dropped, fold["dropped"]), (Merged, fold["merged"])):
        stand_ins |= {entry["module"]: kind(entry["module"], entry["shape"]) for entry in entries}
    for name, stand_in in stand_ins.items():
        _name_parts(stand_in, name, model.get_submodule(name))
        model.set_submodule(name, stand_in.train(model.training))
    parents = table["module"].split(".")[:-1]
    for depth in range(len(parents) + 1):  # whichever of them a program calls, its pass begins there
        model.get_submodule(".".join(parents[:depth])).register_forward_pre_hook(row.forget)
    return row


def _name_parts(stand_in: nn.Module, name: str, module: nn.Module) -> None:
    """Keep the names of a folded module's own parts, so that an adapter meant for one of them is refused."""
    for part, child in module.named_children():
        stand_in.add_module(part, Folded(f"{name}.{part}"))
        _name_parts(stand_in.get_submodule(part), f"{name}.{part}", child)


def _init_of(source: type[PreTrainedModel]) -> Callable[..., None]:
    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if config.prefold["format"] != FORMAT:
            raise ValueError(
                f"a folded checkpoint of format {config.prefold['format']}: this module runs format {FORMAT}"
            )
        source.__init__(self, config, *args, **kwargs)
        self.prefold_row = fold_modules(self, config.prefold)
        self.post_init()

    return __init__


def _fold_config_class(source: type[PreTrainedConfig], module: str) -> type[PreTrainedConfig]:
    """Derive the configuration class of a folded checkpoint: the source's, under a ``model_type`` of its own."""
    namespace = {"model_type": f"{PREFIX.lower()}_{source.model_type}", "__module__": module}
    folded: type[PreTrainedConfig] = type(PREFIX + source.__name__, (source,), namespace)
    folded.register_for_auto_class("AutoConfig")
    return folded


def _fold_model_class(source: type[PreTrainedModel], module: str) -> type[PreTrainedModel]:
    """Derive the model class of a folded checkpoint: the source's, with the folded modules swapped for columns."""
    config_class: Any = source.config_class
    namespace = {
        "__init__": _init_of(source),
        "__module__": module,
        "config_class": derive(config_class, module),
        # Left to itself, transformers answers these two from the text of a class's own file, which here is this one.
        "_can_set_attn_implementation": source._can_set_attn_implementation,
        "_can_set_experts_implementation": source._can_set_experts_implementation,
        # As custom code it would not get the buffers that its own model fills in for its layers.
        "is_custom_code": source.is_custom_code,
    }
    folded: type[PreTrainedModel] = type(PREFIX + source.__name__, (source,), namespace)
    # Tensors keep the source's names, so the source's renames must still be found under the new class name.
    renames = get_checkpoint_conversion_mapping(source.__name__)
    renames = renames or get_checkpoint_conversion_mapping(config_class.model_type)
    register_checkpoint_conversion_mapping(folded.__name__, renames or [], overwrite=True)
    folded.register_for_auto_class("AutoModelForCausalLM")
    return folded


def derive(source: type[Any], module: str = __name__) -> type[Any]:
    """Return the folded class of a config or model class, made once, so that it stays one for pickle and isinstance.

    ``module`` is where a program finds it; a checkpoint whose source brings its own code has one of its own.
    """
    name = PREFIX + source.__name__
    if name not in globals():
        is_config = issubclass(source, PreTrainedConfig)
        make: Callable[[Any, str], type[Any]] = _fold_config_class if is_config else _fold_model_class
        globals()[name] = make(source, module)
    made: type[Any] = globals()[name]
    return made


def __getattr__(name: str) -> type[Any]:
    source = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if source is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return derive(source)
