"""From ideal times to those that can be expected: what a chip reaches of its full rates, fitted to measurements.

The paper never puts compute, memory and communication together. This file does, and it is this project's own choice:

    seconds = step + layer * layers - call * gone + start * phases + (arithmetic^p + memory^p + communication^p)^(1/p)

each term divided by what is reached of its rate. An accelerator works while its host calls: there the longer counts of
what comes before ``start`` and of all the rest. With p = 1 nothing overlaps and the terms add up; as p grows all of it
does, and the largest alone remains: the two bounds of an ideal estimate.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefold.plan.cost.terms import Terms

_FILE = Path(__file__).with_name("calibration.json")
_STEPS = 200
_NEARLY = 1e-12
# Matmuls and memory are believed to reach 0.9, give or take a tenth; the residuals of a fit are about half of that.
_EXPECTED = 0.9
_BELIEF = 0.5


@dataclass(frozen=True)
class Factors:
    """What a chip reaches of its rates, as fitted to ``source``.

    Attributes:
        arithmetic: share of peak operations per second.
        memory: share of memory bandwidth.
        links: share of link bandwidth.
        start: seconds for each start of a collective.
        overlap: p, 1 or more.
        step: seconds that every pass costs besides; 0 where that was not measured.
        layer: seconds that every layer costs besides.
        call: seconds of these for each called module; a fold calls fewer.
        ahead: calls run ahead of the device, so that the longer of both counts and not their sum.
    """

    arithmetic: float
    memory: float
    links: float
    start: float
    overlap: float
    source: str = ""
    step: float = 0.0
    layer: float = 0.0
    call: float = 0.0
    ahead: bool = False

    def seconds(self, terms: Terms) -> float:
        """Seconds that a pass can be expected to take."""
        parts = np.array(
            [
                terms.arithmetic / self.arithmetic,
                terms.memory / self.memory,
                terms.communication / self.links,
                terms.link_rows,
            ]
        )
        largest = parts.max()
        if not largest or largest == np.inf:
            return float(largest)
        overlapped = largest * float(((parts / largest) ** self.overlap).sum()) ** (1 / self.overlap)
        calls = self.step + self.layer * terms.layers - self.call * terms.gone
        device = self.start * terms.phases + overlapped
        return float(max(calls, device) if self.ahead else calls + device)


@dataclass(frozen=True)
class Measurement:
    """Passes, so many of each, that ran one after the other in ``seconds`` together."""

    name: str
    passes: tuple[tuple[int, Terms], ...]
    seconds: float

    def predicted(self, factors: Factors) -> float:
        """Seconds of all passes by some factors."""
        return sum(count * factors.seconds(terms) for count, terms in self.passes)

    def error(self, factors: Factors) -> float:
        """The relative error of the predicted time, negative where that is shorter."""
        return self.predicted(factors) / self.seconds - 1

    @property
    def lower(self) -> float:
        """Seconds of the ideal estimate if everything overlaps within a pass."""
        return sum(count * terms.lower for count, terms in self.passes)

    @property
    def upper(self) -> float:
        """Seconds of the ideal estimate if nothing overlaps."""
        return sum(count * terms.upper for count, terms in self.passes)


@cache
def known_factors() -> dict[str, Factors]:
    """Return the factors that come with prefold, by the names of chips."""
    found = json.loads(_FILE.read_text())
    fields = Factors.__dataclass_fields__
    return {name: Factors(**{key: each[key] for key in each.keys() & fields}) for name, each in found.items()}


def factors_of(chip: str) -> Factors | None:
    """Return a chip's factors; None for a chip without measurements."""
    return known_factors().get(chip)


def median_error(factors: Factors, measurements: Sequence[Measurement]) -> float:
    """Return the median of the errors' sizes."""
    return float(np.median([abs(each.error(factors)) for each in measurements]))


def fit(measurements: Sequence[Measurement], source: str = "") -> Factors:
    """Return the factors that explain measurements best.

    Five numbers, the least squares of the errors' logarithms, by Levenberg and Marquardt's method. The times of matmuls
    and of links grow alike with the number of tokens, and so measurements of one layout hardly tell a slow one from the
    other: matmuls and memory are held near 0.9, and links explain the rest. No share is above 1, nor ``overlap`` below.
    """
    point = np.log([_EXPECTED, _EXPECTED, 0.5, 2e-5, 2.0])
    residual, damping = _residual(point, measurements), 1e-2
    for _ in range(_STEPS):
        slope = _jacobian(point, residual, measurements)
        step = np.linalg.solve(slope.T @ slope + damping * np.eye(5), -slope.T @ residual)
        new = _allowed(point + np.clip(step, -1, 1))
        changed = _residual(new, measurements)
        gained = float(residual @ residual - changed @ changed)
        if gained <= 0:
            damping *= 4
            continue
        point, residual, damping = new, changed, max(damping / 5, _NEARLY)
        if gained < _NEARLY:
            break
    return _factors(point, source)


def _factors(point: NDArray[Any], source: str = "") -> Factors:
    arithmetic, memory, links, start, overlap = map(float, np.exp(point))
    return Factors(arithmetic, memory, links, start, overlap, source)


def _allowed(point: NDArray[Any]) -> NDArray[Any]:
    low = np.array([-np.inf, -np.inf, -np.inf, -np.inf, 0.0])
    high = np.array([0.0, 0.0, 0.0, np.inf, np.inf])
    allowed: NDArray[Any] = np.clip(point, low, high)
    return allowed


def _residual(point: NDArray[Any], measurements: Sequence[Measurement]) -> NDArray[Any]:
    factors = _factors(point)
    misses = [np.log(each.predicted(factors) / each.seconds) for each in measurements]
    return np.array([*misses, *(_BELIEF * (point[:2] - np.log(_EXPECTED)))])


def _jacobian(point: NDArray[Any], residual: NDArray[Any], measurements: Sequence[Measurement]) -> NDArray[Any]:
    small = 1e-6
    columns = [(_residual(point + small * unit, measurements) - residual) / small for unit in np.eye(len(point))]
    return np.array(columns).T


def as_json(fitted: dict[str, tuple[Factors, Sequence[Measurement]]]) -> str:
    """Write fitted factors as the file that comes with prefold holds them, with what they were fitted to."""
    found = {
        name: {
            **{key: _rounded(value) for key, value in asdict(factors).items() if value},
            "measurements": len(used),
            "median_error": float(f"{median_error(factors, used):.3g}"),
        }
        for name, (factors, used) in fitted.items()
    }
    return json.dumps(found, indent=2) + "\n"


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.4g}")
