"""Errors of a tree-structured cache; each says in one line what is wrong and what to do."""

from prefold.tree.errors import TreeError, Uncountable


class CacheError(TreeError):
    """Something a tree-structured cache cannot do, or could only do wrongly."""


class WrongAttention(CacheError, Uncountable):
    """The cache is used with an attention implementation, or by a layer, that does not know it."""


class NoAttention(CacheError, Uncountable):
    """The model, or one of its layers, keeps something else than keys and values."""


class OutOfPages(CacheError):
    """There are more tokens than pages to hold them."""


class PrunedSegment(CacheError):
    """A branch was asked for from a segment that is gone."""


class RaggedRows(CacheError):
    """The rows end at different positions, which the call does not say."""


class UnequalRows(CacheError):
    """Rows that were promised to say the same do not."""
