"""Errors of trees; those of a cache have one line, with what to do."""

from prefold.common.errors import UNSUPPORTED, PrefoldError, UsageError


class Uncountable(PrefoldError):
    """A model whose attention the formulas do not hold for."""

    exit_code = UNSUPPORTED


class CacheError(UsageError):
    """Something a tree-structured cache cannot do, or could only do wrongly."""


class WrongAttention(Uncountable, CacheError):
    """The cache is used with an attention implementation, or by a layer, that does not know it."""


class NoAttention(Uncountable, CacheError):
    """The model, or one of its layers, keeps something else than keys and values."""


class OutOfPages(CacheError):
    """More pages are needed than there are."""


class PrunedSegment(CacheError):
    """A branch of a segment that is gone."""


class RaggedRows(CacheError):
    """The rows end at different positions, and the call gives no positions."""


class UnequalRows(CacheError):
    """Rows that share a prompt differ in it."""


class WrongRoot(CacheError):
    """The file of a root is none, of another format, or bound to another model or other tokens."""
