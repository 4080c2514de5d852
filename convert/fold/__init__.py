"""Rows that are stored in place of the modules that fold, and the reads of a step."""

from prefold.convert.fold.encoding import Encoding, Slice
from prefold.convert.fold.first_layer import method_of, quiet_loading, require_loadable
from prefold.convert.fold.layout import Cut, read_cuts
from prefold.convert.fold.reads import Meter, ParameterReads, count_reads, metered
from prefold.convert.fold.table import Linear, added_tensors, compute_rows
from prefold.convert.fold.tensors import ComputedTensor, made_tensors, untouched

__all__ = [
    "ComputedTensor",
    "Cut",
    "Encoding",
    "Linear",
    "Meter",
    "ParameterReads",
    "Slice",
    "added_tensors",
    "compute_rows",
    "count_reads",
    "made_tensors",
    "metered",
    "method_of",
    "quiet_loading",
    "read_cuts",
    "require_loadable",
    "untouched",
]
