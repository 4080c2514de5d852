"""Source checkpoint in, folded checkpoint out."""

from prefold.common.errors import PrefoldError, UsageError
from prefold.convert.checkpoint.hub import open_repository, require_publishable, upload
from prefold.convert.convert import Conversion, Options, Watch, convert_checkpoint
from prefold.convert.errors import BrokenCheckpoint, HubError, OutputExists, StorageError, UnsupportedModel
from prefold.convert.inspect import Inspection, inspect_checkpoint

__all__ = [
    "BrokenCheckpoint",
    "Conversion",
    "HubError",
    "Inspection",
    "Options",
    "OutputExists",
    "PrefoldError",
    "StorageError",
    "UnsupportedModel",
    "UsageError",
    "Watch",
    "convert_checkpoint",
    "inspect_checkpoint",
    "open_repository",
    "require_publishable",
    "upload",
]
