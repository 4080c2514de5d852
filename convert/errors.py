"""Errors, one class for each way that a caller may want to treat differently."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from prefold.common.errors import EXISTS, UNSUPPORTED, PrefoldError, one_line

# Packages whose code runs what prefold gives it; all others work for one of these or for prefold.
_CALLED = {"transformers", "transformers_modules", "huggingface_hub", "peft"}


class BrokenCheckpoint(PrefoldError):
    """The files of a checkpoint contradict each other, or are not whole."""


class StorageError(PrefoldError):
    """The disk is full, or the output cannot be written."""


class HubError(PrefoldError):
    """The hub cannot be reached, or has no such repository or revision."""


class UnsupportedModel(PrefoldError):
    """The model cannot be folded; ``reasons`` holds every reason found, one sentence each, and is never empty."""

    exit_code = UNSUPPORTED

    def __init__(self, reasons: list[str]) -> None:
        """Keep ``reasons``."""
        super().__init__(reasons)  # as they came: an error that crosses processes is built again from them
        self.reasons = reasons

    def __str__(self) -> str:
        """Show one reason on each line."""
        return "\n".join(self.reasons)


class OutputExists(PrefoldError):
    """The output is already there, or another conversion is writing it."""

    exit_code = EXISTS


class ModelFailed(PrefoldError):
    """A model's own code raised an error: it needs more than a part of a model, or an experiment, gives it."""


def is_own(error: BaseException) -> bool:
    """Return whether an error that was caught around a call was raised by prefold's own code.

    Hooks of prefold's that the called code runs are prefold's own; a mode of torch's that hands a function on is not.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "") for frame in frames if not frame.f_code.co_name.startswith("__torch_")]
    packages = [name.partition(".")[0] for name in names]
    inside = next((at for at, package in enumerate(packages) if package != "prefold"), None)
    if inside is None:
        return True  # nothing was called, or not as it wants to be
    known = (package for package in reversed(packages[inside:]) if package in {"prefold", *_CALLED})
    return next(known, None) == "prefold"


@contextmanager
def model_code() -> Iterator[None]:
    """Turn errors of a model's own code into ``ModelFailed``, with class and message; prefold's own errors pass."""
    try:
        yield
    except (PrefoldError, MemoryError):
        raise
    except Exception as error:
        if is_own(error):
            raise
        raise ModelFailed(f"{type(error).__name__}: {one_line(error)}") from error
