"""Run a folded checkpoint: the first layer's token-pure modules become slices of one looked-up row.

This file travels in every folded checkpoint, with those that it imports beside it; they need torch and transformers
alone. ``X`` of this module is transformers' own ``X``, folded, derived the moment it is asked for. It has the source's
name and config class, since programs decide by both.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .columns_prefold import (
    Column,
    Folded,
    FoldedInputError,
    PaddingMarker,
    Row,
    Table,
    Unread,
    ZeroOutput,
    columns_of,
    residual_start,
    take_forms,
    unread_of,
    without,
)
from .ranks_prefold import distributor_of
from .storage_prefold import PLACEMENTS, DiskRows, HostRows, TableError, find_extent, hash_of
from .sums_prefold import sum_modules

FORMAT = 8
# The first and last versions of transformers that this module was tried with.
TESTED = "5.0", "5.24"
# Since this version a table that is no parameter can be loaded.
_PLACED_SINCE = "5.10"
# Says where tables are to lie, for programs whose code does not.
PLACEMENT_VARIABLE = "PREFOLD_PLACEMENT"
# One logger name for all copies of this file, so that ``warning_once`` warns once.
_logger = logging.get_logger("transformers.prefold")


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


def _check_version(running: str) -> None:
    """Refuse a version of transformers before the tested ones, and warn of one behind them."""
    tried = f"folded checkpoints were tried with transformers {' to '.join(TESTED)}, and this is {running}"
    if _version(running) < _version(TESTED[0]):
        raise ImportError(tried)
    if _version(running) > _version(TESTED[1]):
        _logger.warning_once(tried)


_check_version(transformers.__version__)


def fold_modules(model: nn.Module, fold: dict[str, Any], placement: str = "device") -> Row:
    """Replace the modules that one entry of a folded ``config.json`` names; returns the row that they share."""
    row, table, columns = Row(adds=fold["sum"] is not None), fold["table"], columns_of(fold)
    stand_ins: dict[str, nn.Module] = {table["module"]: Table(table, row, placement, residual_start(fold))}
    for column in columns:
        name, last = column["module"], column is columns[-1] and not fold["sum"]
        stand_ins[name] = Column(name, row, column["start"], column["shape"], masked=column["masked"], last=last)
    stand_ins |= _without_slice(fold, row)
    if fold["sum"]:
        stand_ins |= sum_modules(model, row, fold["sum"], table["row_width"])
    take_forms(stand_ins, fold["forms"])
    for name, stand_in in stand_ins.items():
        _name_parts(stand_in, name, model.get_submodule(name))
        model.set_submodule(name, stand_in.train(model.training))
    for name in fold["entered_before"]:  # whichever of them a program calls, its pass begins there
        model.get_submodule(name).register_forward_pre_hook(row.clear)
    if table["tokens_of"]:
        model.get_submodule(table["tokens_of"]).register_forward_pre_hook(row.keep_tokens)
    for name in fold["unreachable"]:
        model.get_submodule(name).register_forward_pre_hook(_refuse_look_up)
    return row


def _without_slice(fold: dict[str, Any], row: Row) -> dict[str, nn.Module]:
    """Return stand-ins for modules that are unread, or a part of another slice: without columns these read the row."""
    columns, merged = columns_of(fold), [(each["module"], each["shape"]) for each in fold["merged"]]
    dropped = PaddingMarker if any(column["masked"] for column in columns) else Unread
    read = None if columns or fold["sum"] else row
    unread = {each["module"]: dropped(each["module"], each["shape"]) for each in unread_of(fold)}
    return unread | {name: ZeroOutput(name, shape, read) for name, shape in merged}


def _refuse_look_up(*_: Any) -> None:
    raise FoldedInputError("an embedding beside the token's was asked for, as of a language: it is in no row")


def _name_parts(stand_in: nn.Module, name: str, module: nn.Module) -> None:
    """Keep the names of a folded module's own parts, so that an adapter meant for one of them is refused."""
    for part, child in module.named_children():
        stand_in.add_module(part, Folded(f"{name}.{part}"))
        _name_parts(stand_in.get_submodule(part), f"{name}.{part}", child)


def _refuse_inputs(model: Any, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse inputs that take the place of tokens, whose rows would then be wrong."""
    for name in model.config.prefold["refused_inputs"]:
        if kwargs.get(name) is not None:
            raise FoldedInputError(f"{name}: this model was folded for token ids alone (--text-only)")


def _untie(model: PreTrainedModel, weights: list[str]) -> None:
    """Forget ties with weights of an embedding that is a table now."""
    for name, part in model.named_modules():
        if not isinstance(part, PreTrainedModel) or not part._tied_weights_keys:
            continue
        prefix = f"{name}." if name else ""
        gone = [weight.removeprefix(prefix) for weight in weights if weight.startswith(prefix)]
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            if isinstance(ties := getattr(part, name, None), dict):  # before transformers 5 the config alone decides
                kept = {one: other for one, other in ties.items() if not _names_any(gone, one, other)}
                setattr(part, name, kept)


def _names_any(weights: list[str], *patterns: str) -> bool:
    return any(re.match(pattern, weight) for pattern in patterns for weight in weights)


def _placement(asked: str | None, config: Any) -> str:
    """Return where tables are to lie: by a program's argument, its environment, or the checkpoint."""
    placement = asked or os.environ.get(PLACEMENT_VARIABLE) or config.prefold["placement"]
    if placement not in PLACEMENTS:
        raise ValueError(f"prefold_placement {placement!r} is none of {', '.join(PLACEMENTS)}")
    if placement != "device" and _version(transformers.__version__) < _version(_PLACED_SINCE):
        raise ValueError(f"prefold_placement {placement!r} needs transformers {_PLACED_SINCE}")
    if placement == "host" and not torch.accelerator.is_available():
        _logger.warning_once("prefold_placement 'host': there is no accelerator, so all of the model is in host memory")
    return str(placement)


def _loader_of(source: type[PreTrainedModel]) -> Any:
    """Derive how weights are loaded: as the source's, and tables straight to where they are to lie."""

    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        _warn_of_dtype(model.config)
        absent = [table for table in _tables(model) if not table.is_on_device and table.rows is None]
        # First, since only this tells which file is broken; kept until the rest is loaded, which has no table.
        rows = [_rows(model, table, state_dict, checkpoint_files) for table in absent]
        loaded = source._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        for table, found in zip(absent, rows, strict=True):
            table.rows = found
        for stand_in in _stand_ins(model):  # loading makes all of a model trainable
            stand_in.requires_grad_(False)
        return loaded

    return staticmethod(_load_pretrained_model)


def _warn_of_dtype(config: Any) -> None:
    """Warn where rows that were computed in one type are loaded in another."""
    asked, folded = str(config.dtype).removeprefix("torch."), config.prefold["dtype"]
    if asked != folded:
        _logger.warning_once(
            f"a fold of {folded}, loaded as {asked}: not equal to its source loaded as {asked}; for that, run prefold"
            f" convert {config.prefold['source']} OUT --dtype {asked}"
        )


def _stand_ins(model: nn.Module) -> list[nn.Module]:
    """Return the modules that took the place of others, and the twins of look-ups that stay."""
    return [module for name, module in model.named_modules() if isinstance(module, Folded) or name.endswith(".prefold")]


def _tables(model: Any) -> list[Table]:
    return [model.get_submodule(fold["table"]["module"]) for fold in model.prefold_folds]


def _tensor_names(table: dict[str, Any]) -> list[str]:
    return [table["tensor"], f"{table['module']}.weight"]


def _rows(model: Any, table: Table, state_dict: Any, files: list[str] | None) -> HostRows | DiskRows:
    name, placement, names = table.entry["tensor"], model.prefold_placement, _tensor_names(table.entry)
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
        hashes = self.config.prefold.get("tensor_sha256", {}) | made
        self.config.prefold = self.config.prefold | {"tensor_sha256": hashes}
        source.save_pretrained(self, save_directory, *args, **kwargs)

    return save_pretrained


def _auto_class(folded: type[PreTrainedModel], config: Any) -> str:
    """Return the auto class that loads a folded class."""
    classes = {str(auto): str(name).rpartition(".")[2] for auto, name in config.auto_map.items() if "Model" in auto}
    for auto, name in classes.items():
        if name == folded.__name__:
            return auto
    known = ", ".join(dict.fromkeys(classes.values()))
    raise ValueError(f"folded as {known}: it cannot be loaded as {folded.__name__}")


def _folds_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return the config's folds; of a base model by the names that modules have without the head's prefix."""
    prefix, folds = model.base_model_prefix, model.config.prefold["folds"]
    return folds if hasattr(model, prefix) else without(f"{prefix}.", folds)  # type: ignore[no-any-return]


def _init_of(source: type[PreTrainedModel]) -> Callable[..., None]:
    def __init__(  # noqa: N807
        self: Any, config: Any, *args: Any, prefold_placement: str | None = None, **kwargs: Any
    ) -> None:
        if config.prefold["format"] != FORMAT:
            raise ValueError(
                f"a folded checkpoint of format {config.prefold['format']}, and this module runs format {FORMAT}: fold"
                f" it anew: prefold convert {config.prefold.get('source', 'SOURCE')} OUT"
            )
        source.__init__(self, config, *args, **kwargs)
        self._auto_class = _auto_class(type(self), config)
        self.prefold_placement = _placement(prefold_placement, config)
        self.prefold_folds = _folds_of(self)
        tables = [fold["table"]["module"] for fold in self.prefold_folds]
        gone = [f"{name}.{own}" for name in tables for own, _ in self.get_submodule(name).named_parameters()]
        self.prefold_rows = [fold_modules(self, fold, self.prefold_placement) for fold in self.prefold_folds]
        self.register_forward_pre_hook(_refuse_inputs, with_kwargs=True)
        _untie(self, gone)
        self.post_init()
        if self.prefold_placement != "device":
            names = [name for fold in self.prefold_folds for name in _tensor_names(fold["table"])]
            ignored = {rf"^{re.escape(name)}$" for name in names}
            self._keys_to_ignore_on_load_unexpected = ignored.union(self._keys_to_ignore_on_load_unexpected or ())

    return __init__


def _count_of(source: type[PreTrainedModel]) -> Any:
    """Derive how parameters are counted: a table is an embedding."""

    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        count: int = source.num_parameters(self, only_trainable, exclude_embeddings)
        if not exclude_embeddings:
            return count
        tables = [table.values for table in _tables(self) if table.is_on_device]
        return count - sum(table.numel() for table in tables if table.requires_grad or not only_trainable)

    return num_parameters


def _resize_token_embeddings(self: Any, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Module:
    """Return the input embedding; refuse any other size than its own."""
    embedding: Any = self.get_input_embeddings()
    if new_num_tokens not in (None, embedding.num_embeddings):
        raise FoldedInputError(f"{embedding.extra_repr()}: add tokens to the source, and fold it again")
    return embedding  # type: ignore[no-any-return]


def derive(source: type[Any], module: str = __name__) -> type[Any]:
    """Return the folded class of a model class, made once, so that it stays one for pickle and isinstance.

    ``module`` is where a program finds it; a checkpoint whose source brings its own code has one of its own.
    """
    if source.__name__ not in globals():
        globals()[source.__name__] = type(source.__name__, (source,), _members(source) | {"__module__": module})
    derived: type[Any] = globals()[source.__name__]
    return derived


def _members(source: type[PreTrainedModel]) -> dict[str, Any]:
    # Left to itself, transformers answers these from the text of a class's own file, which here is this one, and does
    # not give custom code the buffers that its own model fills in for its layers.
    by_file = ("_can_set_attn_implementation", "_can_set_experts_implementation", "is_custom_code")
    return {name: getattr(source, name) for name in by_file if hasattr(source, name)} | {
        "_auto_class": "AutoModel",  # saving copies this file for classes that have one; each model knows its own
        "__init__": _init_of(source),
        "_load_pretrained_model": _loader_of(source),
        "save_pretrained": _saver_of(source),
        "maybe_distribute_model": distributor_of(source),
        "num_parameters": _count_of(source),
        "resize_token_embeddings": _resize_token_embeddings,
    }


def __getattr__(name: str) -> type[Any]:
    source = getattr(transformers, name, None)
    if not (isinstance(source, type) and issubclass(source, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return derive(source)
