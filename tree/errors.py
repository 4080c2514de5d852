"""What can be wrong with a tree, and with what is to be counted of it."""

from collections.abc import Sequence
from difflib import get_close_matches


class TreeError(Exception):
    """A tree, or what was asked of it, cannot be used; one line for each reason."""


class Uncountable(TreeError):
    """A model whose attention the formulas do not hold for."""


class UnknownName(TreeError):
    """A name that nothing of its kind has."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        """Name those that are nearest."""
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
        super().__init__(f"{name}: no such {kind}; the nearest: {', '.join(near[:3])}")
