"""Trees of token sequences: what their attention reads, and attention that reads a shared prefix once (DeFT 2024).

Counting needs NumPy alone; running needs torch, which is imported with the first of its names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefold.common.errors import UnknownName, UsageError
from prefold.tree.count.files import Forest, read_trees
from prefold.tree.count.generators import beam, few_shot, levels, n_best, open_trees, read_accepted, speculative
from prefold.tree.count.reads import SCHEMES, Attention, Counted, Counts, Reads, Scheme, count_rows, count_trees
from prefold.tree.count.segments import Tree, make_tree
from prefold.tree.count.timeline import replay
from prefold.tree.errors import CacheError, Uncountable

if TYPE_CHECKING:
    from prefold.tree.cache.generate import HOLD, Branch, GeneratedTree, tree_generate
    from prefold.tree.cache.sampling import Asked, Sampled, prefill, sample_plain, sample_tree
    from prefold.tree.cache.tree_cache import Memory, TreeCache

__all__ = [
    "HOLD",
    "SCHEMES",
    "Asked",
    "Attention",
    "Branch",
    "CacheError",
    "Counted",
    "Counts",
    "Forest",
    "GeneratedTree",
    "Memory",
    "Reads",
    "Sampled",
    "Scheme",
    "Tree",
    "TreeCache",
    "Uncountable",
    "UnknownName",
    "UsageError",
    "beam",
    "count_rows",
    "count_trees",
    "few_shot",
    "levels",
    "make_tree",
    "n_best",
    "open_trees",
    "prefill",
    "read_accepted",
    "read_trees",
    "replay",
    "sample_plain",
    "sample_tree",
    "speculative",
    "tree_generate",
]

_RUNNING = {
    **dict.fromkeys(("HOLD", "Branch", "GeneratedTree", "tree_generate"), "generate"),
    **dict.fromkeys(("Asked", "Sampled", "prefill", "sample_plain", "sample_tree"), "sampling"),
    **dict.fromkeys(("Memory", "TreeCache"), "tree_cache"),
}


def __getattr__(name: str) -> Any:
    if name not in _RUNNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.cache.{_RUNNING[name]}"), name)
