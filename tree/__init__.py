"""Trees of token sequences: what their attention reads, and attention that reads a shared prefix once (DeFT 2024).

What counts needs NumPy alone; what runs needs torch, which is imported when the first of its names is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefold.tree.accepted import read_accepted, speculative
from prefold.tree.errors import TreeError, Uncountable, UnknownName
from prefold.tree.files import Forest, read_trees
from prefold.tree.generators import beam, few_shot, n_best
from prefold.tree.reads import Attention, Counted, Reads, count_trees
from prefold.tree.schemes import SCHEMES, Counts, Scheme, count_rows
from prefold.tree.segments import Tree, make_tree
from prefold.tree.sources import open_trees
from prefold.tree.timeline import replay

if TYPE_CHECKING:
    from prefold.tree.cache import Memory, TreeCache
    from prefold.tree.cache_errors import CacheError
    from prefold.tree.generate import HOLD, Branch, GeneratedTree, tree_generate
    from prefold.tree.prompt import prefill

__all__ = [
    "HOLD",
    "SCHEMES",
    "Attention",
    "Branch",
    "CacheError",
    "Counted",
    "Counts",
    "Forest",
    "GeneratedTree",
    "Memory",
    "Reads",
    "Scheme",
    "Tree",
    "TreeCache",
    "TreeError",
    "Uncountable",
    "UnknownName",
    "beam",
    "count_rows",
    "count_trees",
    "few_shot",
    "make_tree",
    "n_best",
    "open_trees",
    "prefill",
    "read_accepted",
    "read_trees",
    "replay",
    "speculative",
    "tree_generate",
]

_RUNNING = {
    **dict.fromkeys(("Memory", "TreeCache"), "cache"),
    **dict.fromkeys(("HOLD", "Branch", "GeneratedTree", "tree_generate"), "generate"),
    "CacheError": "cache_errors",
    "prefill": "prompt",
}


def __getattr__(name: str) -> Any:
    if name not in _RUNNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_RUNNING[name]}"), name)
