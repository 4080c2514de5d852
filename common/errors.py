"""Errors that are raised on purpose, each with the exit code of a command that ends with it.

* ``PrefoldError``: 1

  * ``UsageError``: 2, an argument, or a file that a user wrote

    * ``UnknownName``
    * ``tree.CacheError``, ``export.MissingRuntime``

  * ``UnsupportedModel``, ``plan.Infeasible``, ``tree.Uncountable``, ``export.NotExported``: 3
  * ``OutputExists``: 4
  * ``VerificationFailed``: 5
  * ``BrokenCheckpoint``, ``StorageError``, ``HubError``: 1
"""

from collections.abc import Sequence
from difflib import get_close_matches

FAILED, USAGE, UNSUPPORTED, EXISTS, UNVERIFIED = 1, 2, 3, 4, 5
_LENGTH = 200  # characters of another program's message that are shown


class PrefoldError(Exception):
    """Base of every error that prefold raises on purpose; its text has one line for each reason.

    Attributes:
        exit_code: of a command that ends with it.
    """

    exit_code = FAILED


class UsageError(PrefoldError):
    """An argument makes no sense: no such path, not a checkpoint, no such unit."""

    exit_code = USAGE


class UnknownName(UsageError):
    """A name that no catalogue has."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        """Show the names that are nearest."""
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
        super().__init__(f"{name}: no such {kind}; the nearest: {', '.join(near[:3])}")


def one_line(error: BaseException) -> str:
    """Return the beginning of an error's message on one line, or its class where it has none."""
    return " ".join(str(error).split())[:_LENGTH] or type(error).__name__
