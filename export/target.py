"""What an export asks of a runtime, and what a model returns there."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefold.export.split_rows import SplitRows
from prefold.verify import Outcome


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


class Traced(Protocol):
    """A decoder in the form of a runtime."""

    def save(self, folder: Path, table: Collection[str]) -> None:
        """Write it; ``table`` names the tensors of the rows."""

    def describe(self, folder: Path, model: Any, context: int) -> None:
        """Write beside it what a program asks for that runs it."""


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        process: the module that runs a job there, in a process of its own.
        batched: whether it takes several sequences at once.
        trace: a model, with room for so many tokens.
    """

    name: str
    process: str
    batched: bool
    trace: Callable[[Any, int], Traced]
    check_process: Callable[[Logits], Outcome]
    check_rows: Callable[[Path, dict[str, SplitRows]], Outcome]


def target_of(to: str) -> Target:
    """Return a runtime by the name that ``--to`` has for it, importing what exports to it."""
    found: Target = import_module(f"prefold.export.to_{to}").TARGET
    return found
