"""Run a folded checkpoint: the first layer's token-pure modules become slices of one looked-up row.

This file travels in every folded checkpoint and needs torch and transformers alone. ``PrefoldX`` is
derived from transformers' own ``X`` the moment it is asked for, so one file serves every architecture.
"""

import copy
import re
import threading
from collections.abc import Callable
from functools import partial
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
FORMAT = 2
# Where generation asks a model's type: decoders of some begin with tokens of their own.
_DECODER_START = "_prepare_decoder_input_ids_for_generation"


class FoldedInputError(ValueError):
    """A folded model was asked for something that only the unfolded source can do."""


class Row:
    """The looked-up rows of the forward pass under way, ``[batch, seq, row_width]``, or None between passes.

    Where the first layer sees a sum of look-ups, ``others`` is what the other look-ups add to the last columns, and
    ``scales`` are the scales of the norms that the sum goes through. Every thread has its own, so that passes side by
    side do not read each other's.
    """

    def __init__(self, *, adds: bool) -> None:
        """``adds`` says that rows of one pass may be added up: what they are stored for is linear in them."""
        self.adds = adds
        self._of_thread = threading.local()  # not a base class: writes of compiled code would miss its storage

    def __reduce__(self) -> Any:
        return partial(Row, adds=self.adds), ()  # a copy of a model starts between passes

    @property
    def values(self) -> torch.Tensor | None:
        """The rows that the calling thread looked up."""
        return getattr(self._of_thread, "values", None)

    @property
    def others(self) -> torch.Tensor | None:
        """What look-ups of anything but the token add to the last columns, ``[..., seq, width]``."""
        return getattr(self._of_thread, "others", None)

    @property
    def scales(self) -> tuple[torch.Tensor, ...]:
        """The scales of the norms passed so far, ``[batch, seq, 1]`` each."""
        return getattr(self._of_thread, "scales", ())

    def add(self, values: torch.Tensor) -> None:
        """Keep rows; those of a second look-up in the same table, as of token types, are added."""
        if self.values is not None and not self.adds:
            raise FoldedInputError("a second look-up in one pass, as of token types: rows of this model do not add up")
        self._of_thread.values = values if self.values is None else self.values + values

    def add_others(self, values: torch.Tensor) -> None:
        """Keep what another look-up adds."""
        self._of_thread.others = values if self.others is None else self.others + values

    def add_scale(self, scale: torch.Tensor) -> None:
        """Keep a norm's scale."""
        self._of_thread.scales = (*self.scales, scale)

    def forget(self, *_: Any) -> None:
        """Drop what an interrupted pass left; a hook that runs before every pass."""
        self._of_thread.values = self._of_thread.others = None
        self._of_thread.scales = ()

    def read(self) -> torch.Tensor:
        """Return the rows."""
        values = self.values
        if values is None:
            raise FoldedInputError(
                "no token ids were looked up in this forward pass: a folded model takes input_ids, not inputs_embeds"
            )
        return values


class Folded(nn.Module):
    """Common to all stand-ins: empty weights, for callers that ask a module for its dtype or initialize it."""

    weight: torch.Tensor
    bias: torch.Tensor

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
        self.row.add(values)
        if self.start is None:
            return values.new_empty(*input_ids.shape, self.width)
        return values[..., self.start : self.start + self.width]


class Column(Folded):
    """Stands for a folded module: returns its slice of the row instead of computing it."""

    def __init__(self, name: str, row: Row, start: int, shape: list[int], *, masked: bool, last: bool) -> None:
        """``last`` is the last reader: it lets go of the row, so that none outlives its forward pass."""
        super().__init__(name)
        self.row, self.start, self.shape, self.masked, self.last = row, start, shape, masked, last
        self.stop = start + int(torch.Size(shape).numel())

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]``; of the input only its zeros at padded positions count, if ``masked``."""
        values = self.slice()
        if self.last:
            self.row.forget()
        values = values.to(self.weight.device)
        if self.masked:
            values = torch.where(hidden_states.ne(0).any(-1, keepdim=True), values, self.hidden(values))
        return values.unflatten(-1, self.shape) if len(self.shape) > 1 else values

    def hidden(self, values: torch.Tensor) -> torch.Tensor:
        """Return what padded positions get, in the type of ``values``: zeros."""
        return values.new_zeros(())

    def slice(self) -> torch.Tensor:
        """Return the column's part of the row, ``[batch, seq, width]``."""
        return self.row.read()[..., self.start : self.stop]


class SumColumn(Column):
    """Stands for a module that was linear in a sum of look-ups behind norms (docs/how-it-works.md)."""

    def __init__(self, row: Row, entry: dict[str, Any], *, steps: int, first: int, last: bool) -> None:
        """``first`` is where the columns of this kind begin in a row; ``steps`` counts the norms, or is 1."""
        super().__init__(entry["module"], row, entry["start"], entry["shape"], masked=entry["masked"], last=last)
        self.first, self.steps = first, steps
        del self.bias
        self.bias = nn.Parameter(torch.empty(steps + self.masked, self.stop - self.start), requires_grad=False)

    def slice(self) -> torch.Tensor:
        """Add the look-ups' parts up in float32 at least, and apply the norms' scales and biases in turn."""
        token, others = self.row.read(), self.row.others
        wide, device = torch.promote_types(token.dtype, torch.float32), self.bias.device
        total = token[..., self.start : self.stop].to(device, wide)
        if others is not None:
            total = total + others[..., self.start - self.first : self.stop - self.first].to(device, wide)
        scales = self.row.scales
        for step, bias in enumerate(self.bias[: self.steps].to(wide)):
            total = (total * scales[step].to(device, wide) if scales else total) + bias
        return total.to(token.dtype)

    def hidden(self, values: torch.Tensor) -> torch.Tensor:
        """Return what padded positions get, ``[width]``: what a sum of zero becomes."""
        return self.bias[-1].to(values.dtype)


class Scale(Folded):
    """Measures the scale of a norm for the columns behind it, and stands for the norm where nobody else reads it."""

    def __init__(self, name: str, row: Row, eps: float, *, centred: bool) -> None:
        super().__init__(name)
        self.row, self.eps, self.centred = row, eps, centred

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keep the scale of ``[batch, seq, width]``, and return it as it came."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        self.row.add_scale(torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps))
        return hidden_states


class Dropped(Folded):
    """Stands for a module whose output nobody reads any more: returns something of its shape, for free."""

    def __init__(self, name: str, shape: list[int]) -> None:
        super().__init__(name)
        self.shape = shape

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]``, neither read nor written: memory of its own, since models scale in place."""
        return hidden_states.new_empty(*hidden_states.shape[:2], *self.shape)


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
    """Replace the modules that one entry of a folded ``config.json`` names; returns the row that they share."""
    row, table, columns = Row(adds=fold["sum"] is not None), fold["table"], fold["columns"]
    stand_ins: dict[str, nn.Module] = {
        table["module"]: Table(table["module"], row, table["rows"], table["row_width"], table["start"], table["width"])
    }
    for column in columns:
        name, last = column["module"], column is columns[-1] and not fold["sum"]
        stand_ins[name] = Column(name, row, column["start"], column["shape"], masked=column["masked"], last=last)
    dropped = Shown if any(column["masked"] for column in columns) else Dropped
    for kind, entries in ((dropped, fold["dropped"]), (Merged, fold["merged"])):
        stand_ins |= {entry["module"]: kind(entry["module"], entry["shape"]) for entry in entries}
    if fold["sum"]:
        stand_ins |= _sum_modules(model, row, fold["sum"], table["row_width"])
    for name, stand_in in stand_ins.items():
        _name_parts(stand_in, name, model.get_submodule(name))
        model.set_submodule(name, stand_in.train(model.training))
    for name in fold["begins"]:  # whichever of them a program calls, its pass begins there
        model.get_submodule(name).register_forward_pre_hook(row.forget)
    for name in fold["unused"]:
        model.get_submodule(name).register_forward_pre_hook(_refuse_look_up)
    return row


def _refuse_look_up(*_: Any) -> None:
    raise FoldedInputError("an embedding beside the token's was asked for, as of a language: it is in no row")


def _sum_modules(model: nn.Module, row: Row, entry: dict[str, Any], row_width: int) -> dict[str, nn.Module]:
    """Let look-ups and norms that stay tell the row what columns need; returns stand-ins for the rest."""
    first, stand_ins = entry["columns"][0]["start"], dict[str, nn.Module]()
    for look_up in entry["look_ups"]:
        _look_up_beside(model.get_submodule(look_up["module"]), look_up, row, row_width - first)
    for norm in entry["norms"]:
        scale = Scale(norm["module"], row, norm["eps"], centred=norm["centred"])
        if norm["live"]:
            kept = model.get_submodule(norm["module"])
            kept.add_module("prefold", scale)
            kept.register_forward_pre_hook(_measure_scale)
        else:
            stand_ins[norm["module"]] = scale
    for column in entry["columns"]:
        name, last, steps = column["module"], column is entry["columns"][-1], max(len(entry["norms"]), 1)
        stand_ins[name] = SumColumn(row, column, steps=steps, first=first, last=last)
    return stand_ins


def _look_up_beside(module: nn.Module, look_up: dict[str, Any], row: Row, width: int) -> None:
    """Give a look-up a twin, with the same code and another weight, that looks up what it adds to the columns."""
    twin: Any = copy.deepcopy(module)
    delattr(twin, look_up["weight"])
    twin.register_parameter(look_up["weight"], nn.Parameter(torch.empty(look_up["rows"], width), requires_grad=False))
    twin.row = row
    module.add_module("prefold", twin)
    module.register_forward_hook(_look_beside, with_kwargs=True)


def _look_beside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
    found = module.prefold(*args, **kwargs)
    module.prefold.row.add_others(found[0] if isinstance(found, tuple) else found)


def _measure_scale(module: Any, args: tuple[Any, ...]) -> None:
    module.prefold(args[0])


def _name_parts(stand_in: nn.Module, name: str, module: nn.Module) -> None:
    """Keep the names of a folded module's own parts, so that an adapter meant for one of them is refused."""
    for part, child in module.named_children():
        stand_in.add_module(part, Folded(f"{name}.{part}"))
        _name_parts(stand_in.get_submodule(part), f"{name}.{part}", child)


def _refuse_inputs(model: Any, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what would take the place of tokens, whose rows would then be wrong."""
    for name in model.config.prefold["refused_inputs"]:
        if kwargs.get(name) is not None:
            raise FoldedInputError(f"{name}: this model was folded for token ids alone (--text-only)")


def _untie(model: PreTrainedModel, tables: list[str]) -> None:
    """Forget that other weights were those of an embedding which is a table now."""
    for name, part in model.named_modules():
        if not isinstance(part, PreTrainedModel) or not part._tied_weights_keys:
            continue
        prefix = f"{name}." if name else ""
        gone = [table.removeprefix(prefix) + ".weight" for table in tables if table.startswith(prefix)]
        for ties in ("_tied_weights_keys", "all_tied_weights_keys"):
            kept = {one: other for one, other in getattr(part, ties).items() if not _names_any(gone, one, other)}
            setattr(part, ties, kept)


def _names_any(weights: list[str], *patterns: str) -> bool:
    return any(re.match(pattern, weight) for pattern in patterns for weight in weights)


def _init_of(source: type[PreTrainedModel]) -> Callable[..., None]:
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if config.prefold["format"] != FORMAT:
            raise ValueError(
                f"a folded checkpoint of format {config.prefold['format']}: this module runs format {FORMAT}"
            )
        if type(self).__name__ not in config.architectures:
            raise ValueError(f"folded as {config.architectures[0]}: it cannot be loaded as {type(self).__name__}")
        source.__init__(self, config, *args, **kwargs)
        self._auto_class = next(name for name in config.auto_map if name.startswith("AutoModel"))
        self.prefold_rows = [fold_modules(self, fold) for fold in config.prefold["folds"]]
        self.register_forward_pre_hook(_refuse_inputs, with_kwargs=True)
        _untie(self, [fold["table"]["module"] for fold in config.prefold["folds"]])
        self.post_init()

    return __init__


def _as_source(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let transformers' own code, where it asks for a type, do as it does for the source."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        folded, self.config.model_type = self.config.model_type, self.config.prefold["source_model_type"]
        try:
            return method(self, *args, **kwargs)
        finally:
            self.config.model_type = folded

    return call


def _fold_config_class(source: type[PreTrainedConfig], module: str) -> type[PreTrainedConfig]:
    """Derive the configuration class of a folded checkpoint: the source's, under a ``model_type`` of its own."""
    namespace = {"model_type": f"{PREFIX.lower()}_{source.model_type}", "__module__": module}
    folded: type[PreTrainedConfig] = type(PREFIX + source.__name__, (source,), namespace)
    folded.register_for_auto_class("AutoConfig")
    return folded


def _fold_model_class(
    source: type[PreTrainedModel], config_class: type[PreTrainedConfig], module: str
) -> type[PreTrainedModel]:
    """Derive the model class of a folded checkpoint: the source's, with the folded modules swapped for columns."""
    name = folded_name(source, config_class)
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
    if hasattr(source, _DECODER_START):
        namespace[_DECODER_START] = _as_source(getattr(source, _DECODER_START))
    folded: type[PreTrainedModel] = type(name, (source,), namespace)
    # Tensors keep the source's names, so the source's renames must still be found under the new class name.
    renames = get_checkpoint_conversion_mapping(source.__name__)
    renames = renames or get_checkpoint_conversion_mapping(config_class.model_type)
    register_checkpoint_conversion_mapping(name, renames or [], overwrite=True)
    return folded


def folded_name(source: type[Any], config_class: type[PreTrainedConfig] | None = None) -> str:
    """Name the folded class of a config or model class; a model class that runs other configs, too, has several."""
    # By name: code that a source brings is imported once for every file that it is asked for.
    own = config_class is None or source.config_class.__name__ == config_class.__name__
    return PREFIX + ("" if own or config_class is None else config_class.__name__) + source.__name__


def derive(source: type[Any], module: str = __name__, config_class: type[PreTrainedConfig] | None = None) -> type[Any]:
    """Return the folded class of a config or model class, made once, so that it stays one for pickle and isinstance.

    ``module`` is where a program finds it; a checkpoint whose source brings its own code has one of its own.
    ``config_class`` is the model's config, where that is not the model class's own.
    """
    name = folded_name(source, config_class)
    if name not in globals():
        if issubclass(source, PreTrainedConfig):
            globals()[name] = _fold_config_class(source, module)
        else:
            globals()[name] = _fold_model_class(source, config_class or source.config_class, module)
    made: type[Any] = globals()[name]
    return made


def __getattr__(name: str) -> type[Any]:
    plain = name.removeprefix(PREFIX)
    source = getattr(transformers, plain, None)
    config, _, model = plain.partition("Config")
    config_class = getattr(transformers, f"{config}Config", None) if source is None else None
    source = source or (getattr(transformers, model, None) if config_class else None)
    if source is None or plain == name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return derive(source, config_class=config_class)
