"""A folded checkpoint as an artefact of an edge runtime, and its proof there."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefold.export.errors import EXTRAS, MissingRuntime, NotExported
    from prefold.export.export import Exported, export_checkpoint

__all__ = ["EXTRAS", "Exported", "MissingRuntime", "NotExported", "export_checkpoint"]

_ERRORS = ("EXTRAS", "MissingRuntime", "NotExported")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: an artefact runs in a process without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'errors' if name in _ERRORS else 'export'}"), name)
