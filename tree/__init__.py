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
    from prefold.tree.cache.passes import attend_by
    from prefold.tree.cache.tree_cache import Memory, TreeCache
    from prefold.tree.prompts.policies import sampler
    from prefold.tree.prompts.prefixes import prefill, share_prefixes
    from prefold.tree.prompts.sampling import Asked, Sampled, sample_plain, sample_tree
    from prefold.tree.prompts.score import Scored, score

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
    "Scored",
    "Tree",
    "TreeCache",
    "Uncountable",
    "UnknownName",
    "UsageError",
    "attend_by",
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
    "sampler",
    "score",
    "share_prefixes",
    "speculative",
    "tree_generate",
]

_RUNNING = {
    **dict.fromkeys(("HOLD", "Branch", "GeneratedTree", "tree_generate"), "cache.generate"),
    **dict.fromkeys(("Asked", "Sampled", "sample_plain", "sample_tree"), "prompts.sampling"),
    "attend_by": "cache.passes",
    **dict.fromkeys(("Memory", "TreeCache"), "cache.tree_cache"),
    "sampler": "prompts.policies",
    **dict.fromkeys(("prefill", "share_prefixes"), "prompts.prefixes"),
    **dict.fromkeys(("Scored", "score"), "prompts.score"),
}


def __getattr__(name: str) -> Any:
    if name not in _RUNNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_RUNNING[name]}"), name)
