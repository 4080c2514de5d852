"""What an export asks of a runtime, and what a model returns there."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        to: its name on the command line.
        name: that of the runtime.
        without: the package that a process which runs an artefact has no need of.
        batched: whether it takes several sequences at once.
        write: writes a model to a folder, the named tensors in the table's file, with room for so many tokens.
        stored: the bytes of named tensors in a folder's artefact; those that are not there are left out.
    """

    to: str
    name: str
    without: str
    batched: bool
    write: Callable[[Any, Path, Collection[str], int], None]
    stored: Callable[[Path, Collection[str]], dict[str, NDArray[np.uint8]]]


def target_of(to: str) -> Target:
    """Return a runtime by the name that ``--to`` has for it, importing what exports to it."""
    found: Target = import_module(f"prefold.export.to_{to}").TARGET
    return found


@dataclass(frozen=True)
class Logits:
    """What a model returns for prompts: logits of each, ``[tokens, vocabulary]``, and of a padded batch."""

    prompts: list[list[int]]
    continued: list[list[int]]
    each: list[NDArray[Any]]
    padded: NDArray[Any]
    process: dict[str, Any]

    def distance(self, other: "Logits") -> "Distance":
        """Return the distance of two models' logits; NaN where one is."""
        pairs = [*zip(self.each, other.each, strict=True), (self.padded, other.padded)]
        apart = np.concatenate([(_wide(one) - _wide(two)).ravel() for one, two in pairs])
        return Distance(float(np.sqrt(np.square(apart).mean())), float(np.abs(apart).max()))


@dataclass(frozen=True)
class Distance:
    """The differences of two models' logits: the root of their mean square, and the largest."""

    mean: float
    largest: float


def _wide(logits: NDArray[Any]) -> NDArray[Any]:
    return logits.astype(np.float64)
