"""Time artefacts in turn in one process: ``python edge_speed.py TARGET STEPS ROUNDS VOCABULARY FOLDER...``."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from case import tell
from numpy.typing import NDArray
from timing import compared, in_turn

from prefold.export.in_runtime import LOADERS
from prefold.export.steps import Step

PROMPT = 32


class _Drawn:
    """Random tokens: other ones for every round, but in a round the same for all."""

    def __init__(self, vocabulary: int, length: int, turns: int) -> None:
        self._vocabulary, self._length, self._turns, self._asked = vocabulary, length, turns, 0

    def next(self) -> NDArray[np.int64]:
        generator = np.random.default_rng(self._asked // self._turns)
        self._asked += 1
        return generator.integers(self._vocabulary, size=self._length)


def _seconds(step: Step, steps: int, draw: Callable[[], NDArray[np.int64]]) -> float:
    """Prefill, and return the seconds of one cached step behind that."""
    tokens = draw()
    _, cache = step(tokens[None, :PROMPT], np.ones((1, PROMPT), np.int64), np.arange(PROMPT)[None], None)
    start = time.perf_counter()
    for at in range(PROMPT, PROMPT + steps):
        _, cache = step(tokens[None, at : at + 1], np.ones((1, at + 1), np.int64), np.array([[at]]), cache)
    return (time.perf_counter() - start) / steps


def main(to: str, steps: str, rounds: str, vocabulary: str, *folders: str) -> None:
    """Report the median of each folder, and its ratio to the first, which is the source's."""
    drawn = _Drawn(int(vocabulary), PROMPT + int(steps), len(folders))
    loaded: dict[str, Any] = {folder: LOADERS[to](Path(folder)) for folder in folders}
    timed = {folder: partial(_seconds, step, int(steps), drawn.next) for folder, step in loaded.items()}
    seconds = in_turn(timed, int(rounds))
    tell([{"seconds": median(each)} | compared(seconds[folders[0]], each) for each in seconds.values()])


if __name__ == "__main__":
    main(*sys.argv[1:])
