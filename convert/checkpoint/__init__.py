"""Files and bytes: a checkpoint that is read, and the folder that is written."""

from prefold.convert.checkpoint.files import ADAPTER_FOLDER, CARD, CONFIG, INDEX, REPORT, TABLE, all_files, own_file
from prefold.convert.checkpoint.safetensors_file import DTYPES, Entry, Outgoing, cast, dtype_name, passed_through
from prefold.convert.checkpoint.source import Source, open_config, open_folder, open_source

__all__ = [
    "ADAPTER_FOLDER",
    "CARD",
    "CONFIG",
    "DTYPES",
    "INDEX",
    "REPORT",
    "TABLE",
    "Entry",
    "Outgoing",
    "Source",
    "all_files",
    "cast",
    "dtype_name",
    "open_config",
    "open_folder",
    "open_source",
    "own_file",
    "passed_through",
]
