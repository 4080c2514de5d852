"""Files and bytes: a checkpoint that is read, and the folder that is written."""

from prefold.convert.checkpoint.files import (
    ADAPTER_FOLDER,
    CARD,
    CONFIG,
    INDEX,
    REPORT,
    SOURCE_CARD,
    TABLE,
    all_files,
    is_side_file,
    own_file,
)
from prefold.convert.checkpoint.output import output_folder
from prefold.convert.checkpoint.safetensors_file import DTYPES, Entry, Outgoing, cast, dtype_name, passed_through
from prefold.convert.checkpoint.source import Source, open_config, open_folder, open_source

__all__ = [
    "ADAPTER_FOLDER",
    "CARD",
    "CONFIG",
    "DTYPES",
    "INDEX",
    "REPORT",
    "SOURCE_CARD",
    "TABLE",
    "Entry",
    "Outgoing",
    "Source",
    "all_files",
    "cast",
    "dtype_name",
    "is_side_file",
    "open_config",
    "open_folder",
    "open_source",
    "output_folder",
    "own_file",
    "passed_through",
]
