"""Source checkpoint in, folded checkpoint out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefold.common.errors import PrefoldError, UsageError
from prefold.convert.options import AUTO, DTYPES, PLACEMENTS, TABLE_DTYPES, FoldOptions, flag

if TYPE_CHECKING:
    from prefold.convert.adapter import merge_adapter, modules_in_tables, remaining_adapter
    from prefold.convert.checkpoint.hub import open_repository, require_publishable, upload
    from prefold.convert.convert import Conversion, ConversionProgress, Written, convert_checkpoint
    from prefold.convert.errors import (
        BrokenCheckpoint,
        HubError,
        ModelFailed,
        OutputExists,
        StorageError,
        UnsupportedModel,
        model_code,
    )
    from prefold.convert.inspect import Inspection, inspect_checkpoint
    from prefold.convert.prepare import Prepared, prepare_source
    from prefold.convert.savings import FoldedSide, Savings
    from prefold.convert.study import Study
    from prefold.convert.write import circumstances, folded_config, runtime_code, source_name

__all__ = [
    "AUTO",
    "DTYPES",
    "PLACEMENTS",
    "TABLE_DTYPES",
    "BrokenCheckpoint",
    "Conversion",
    "ConversionProgress",
    "FoldOptions",
    "FoldedSide",
    "HubError",
    "Inspection",
    "ModelFailed",
    "OutputExists",
    "PrefoldError",
    "Prepared",
    "Savings",
    "StorageError",
    "Study",
    "UnsupportedModel",
    "UsageError",
    "Written",
    "circumstances",
    "convert_checkpoint",
    "flag",
    "folded_config",
    "inspect_checkpoint",
    "merge_adapter",
    "model_code",
    "modules_in_tables",
    "open_repository",
    "prepare_source",
    "remaining_adapter",
    "require_publishable",
    "runtime_code",
    "source_name",
    "upload",
]

_SHOWN = {
    "adapter": ("merge_adapter", "modules_in_tables", "remaining_adapter"),
    "checkpoint.hub": ("open_repository", "require_publishable", "upload"),
    "convert": ("Conversion", "ConversionProgress", "Written", "convert_checkpoint"),
    "errors": (
        *("BrokenCheckpoint", "HubError", "ModelFailed", "OutputExists", "StorageError", "UnsupportedModel"),
        "model_code",
    ),
    "inspect": ("Inspection", "inspect_checkpoint"),
    "prepare": ("Prepared", "prepare_source"),
    "study": ("Study",),
    "savings": ("FoldedSide", "Savings"),
    "write": ("circumstances", "folded_config", "runtime_code", "source_name"),
}
_MODULES = {name: module for module, names in _SHOWN.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the options of commands need no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
