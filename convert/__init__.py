"""Source checkpoint in, folded checkpoint out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefold.common.errors import PrefoldError, UsageError
from prefold.convert.options import FoldOptions

if TYPE_CHECKING:
    from prefold.convert.checkpoint.hub import open_repository, require_publishable, upload
    from prefold.convert.convert import Conversion, ConversionProgress, convert_checkpoint
    from prefold.convert.errors import BrokenCheckpoint, HubError, OutputExists, StorageError, UnsupportedModel
    from prefold.convert.inspect import Inspection, inspect_checkpoint

__all__ = [
    "BrokenCheckpoint",
    "Conversion",
    "ConversionProgress",
    "FoldOptions",
    "HubError",
    "Inspection",
    "OutputExists",
    "PrefoldError",
    "StorageError",
    "UnsupportedModel",
    "UsageError",
    "convert_checkpoint",
    "inspect_checkpoint",
    "open_repository",
    "require_publishable",
    "upload",
]

_MODULES = {
    **dict.fromkeys(("BrokenCheckpoint", "HubError", "OutputExists", "StorageError", "UnsupportedModel"), "errors"),
    **dict.fromkeys(("Conversion", "ConversionProgress", "convert_checkpoint"), "convert"),
    **dict.fromkeys(("Inspection", "inspect_checkpoint"), "inspect"),
    **dict.fromkeys(("open_repository", "require_publishable", "upload"), "checkpoint.hub"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the options of commands need no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
