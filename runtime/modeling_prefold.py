"""Run a folded checkpoint: the first layer's token-pure modules become slices of one looked-up row.

This file travels in every folded checkpoint, with those that it imports beside it; they need torch and transformers
alone. ``PrefoldX`` is derived from transformers' own ``X`` the moment it is asked for: they serve every architecture.
"""

import copy
import os
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import logging

from .columns_prefold import (
    Column,
    Folded,
    FoldedInputError,
    NormScale,
    PaddingMarker,
    Row,
    SumColumn,
    Table,
    Unread,
    ZeroOutput,
    columns_of,
    residual_start,
    unread_of,
)
from .ranks_prefold import distributor_of
from .storage_prefold import PLACEMENTS, DiskRows, HostRows, TableError, find_extent, hash_of

PREFIX = "Prefold"
FORMAT = 4
# Says where tables are to lie, for programs whose code does not.
PLACEMENT_VARIABLE = "PREFOLD_PLACEMENT"
# Where generation asks a model's type: decoders of some begin with tokens of their own.
_DECODER_START = "_prepare_decoder_input_ids_for_generation"


# One logger name for all copies of this file, so that ``warning_once`` warns once.
_logger = logging.get_logger(f"transformers.{PREFIX.lower()}")


def fold_modules(model: nn.Module, fold: dict[str, Any], placement: str = "device") -> Row:
    """Replace the modules that one entry of a folded ``config.json`` names; returns the row that they share."""
    row, table, columns = Row(adds=fold["sum"] is not None), fold["table"], columns_of(fold)
    stand_ins: dict[str, nn.Module] = {table["module"]: Table(table, row, placement, residual_start(fold))}
    for column in columns:
        name, last = column["module"], column is columns[-1] and not fold["sum"]
        stand_ins[name] = Column(name, row, column["start"], column["shape"], masked=column["masked"], last=last)
    dropped = PaddingMarker if any(column["masked"] for column in columns) else Unread
    merged = [fold["merged"]] if fold["merged"] else []
    for kind, entries in ((dropped, unread_of(fold)), (ZeroOutput, merged)):
        stand_ins |= {entry["module"]: kind(entry["module"], entry["shape"]) for entry in entries}
    if fold["sum"]:
        stand_ins |= _sum_modules(model, row, fold["sum"], table["row_width"])
    for name, stand_in in stand_ins.items():
        _name_parts(stand_in, name, model.get_submodule(name))
        model.set_submodule(name, stand_in.train(model.training))
    for name in fold["entered_before"]:  # whichever of them a program calls, its pass begins there
        model.get_submodule(name).register_forward_pre_hook(row.clear)
    for name in fold["unreachable"]:
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
        scale = NormScale(norm["module"], row, norm["eps"], centred=norm["centred"])
        if norm["module"] in entry["live"]:
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


def _placement(asked: str | None, config: Any) -> str:
    """Say where tables are to lie: as a program asks, or its environment, or as the checkpoint was made."""
    placement = asked or os.environ.get(PLACEMENT_VARIABLE) or config.prefold["placement"]
    if placement not in PLACEMENTS:
        raise ValueError(f"prefold_placement {placement!r} is none of {', '.join(PLACEMENTS)}")
    if placement == "host" and not torch.accelerator.is_available():
        _logger.warning_once("prefold_placement 'host': there is no accelerator, so all of the model is in host memory")
    return str(placement)


def _loader_of(source: type[PreTrainedModel]) -> Any:
    """Derive how weights are loaded: as the source's, and tables straight to where they are to lie."""

    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        absent = [table for table in _tables(model) if not table.is_on_device and table.rows is None]
        # First, since only this tells which file is broken; kept until the rest is loaded, which has no table.
        rows = [_rows(model, table, state_dict, checkpoint_files) for table in absent]
        loaded = source._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        for table, found in zip(absent, rows, strict=True):
            table.rows = found
        return loaded

    return staticmethod(_load_pretrained_model)


def _tables(model: Any) -> list[Table]:
    return [model.get_submodule(fold["table"]["module"]) for fold in model.config.prefold["folds"]]


def _rows(model: Any, table: Table, state_dict: Any, files: list[str] | None) -> HostRows | DiskRows:
    name, placement = table.entry["tensor"], model.prefold_placement
    names = [name, f"{table.entry['module']}.weight"]
    if state_dict is not None and placement == "disk":
        raise TableError("prefold_placement 'disk': weights were given as tensors, and no file to map a table from")
    if state_dict is not None:
        given = [state_dict[each].to("cpu") for each in names if each in state_dict]
        if not given or given[0].shape != table.shape:
            raise TableError(f"{name}: no tensor {list(table.shape)} of this name was given")
        return HostRows(given[0])
    extent, sha256 = find_extent(files or [], names), model.config.prefold.get("tensor_sha256", {}).get(name)
    if sha256 is None or extent.shape != table.shape:
        raise TableError(f"{extent.path}: config.json tells of no table {list(extent.shape)} with a hash")
    return (DiskRows if placement == "disk" else HostRows).load(extent, sha256)


def _saver_of(source: type[PreTrainedModel]) -> Any:
    """Derive how a model is saved: as the source's, with the hashes of its tables as they are now."""

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        for table in _tables(self):
            if isinstance(table.rows, DiskRows):
                table.rows.require_elsewhere(save_directory)
        there = [table for table in _tables(self) if not table.values.is_meta]  # else as it was loaded, by accelerate
        made = {table.entry["tensor"]: hash_of(table.values) for table in there}
        self.config.prefold = self.config.prefold | {
            "tensor_sha256": self.config.prefold.get("tensor_sha256", {}) | made
        }
        source.save_pretrained(self, save_directory, *args, **kwargs)

    return save_pretrained


def _init_of(source: type[PreTrainedModel]) -> Callable[..., None]:
    def __init__(  # noqa: N807
        self: Any, config: Any, *args: Any, prefold_placement: str | None = None, **kwargs: Any
    ) -> None:
        if config.prefold["format"] != FORMAT:
            raise ValueError(
                f"a folded checkpoint of format {config.prefold['format']}, and this module runs format {FORMAT}: fold"
                f" it anew: prefold convert {config.prefold.get('source', 'SOURCE')} OUT"
            )
        if type(self).__name__ not in config.architectures:
            raise ValueError(f"folded as {config.architectures[0]}: it cannot be loaded as {type(self).__name__}")
        source.__init__(self, config, *args, **kwargs)
        self._auto_class = next(name for name in config.auto_map if name.startswith("AutoModel"))
        self.prefold_placement = _placement(prefold_placement, config)
        self.prefold_rows = [fold_modules(self, fold, self.prefold_placement) for fold in config.prefold["folds"]]
        self.register_forward_pre_hook(_refuse_inputs, with_kwargs=True)
        tables = [fold["table"]["module"] for fold in config.prefold["folds"]]
        _untie(self, tables)
        self.post_init()
        if self.prefold_placement != "device":
            self._keys_to_ignore_on_load_unexpected |= {rf"^{re.escape(table)}\.weight$" for table in tables}

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
        "_load_pretrained_model": _loader_of(source),
        "save_pretrained": _saver_of(source),
        "maybe_distribute_model": distributor_of(source),
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
