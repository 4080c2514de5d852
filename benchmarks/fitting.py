"""Factors of a chip from measured times: the least squares that ``plan/calibration.json`` comes from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefold.plan.calibration import Factors
from prefold.plan.cost.terms import Terms

CALIBRATION = Path(__file__).resolve().parent.parent / "plan" / "calibration.json"
_STEPS = 200
_NEARLY = 1e-12
# Matmuls and memory are believed to reach 0.9, give or take a tenth; the residuals of a fit are about half of that.
_EXPECTED = 0.9
_BELIEF = 0.5


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


def as_table(fitted: dict[str, tuple[Factors, Sequence[Measurement]]]) -> dict[str, Any]:
    """Return fitted factors as the file that comes with prefold holds them, with what they were fitted to."""
    return {
        name: {
            **{key: value for key, value in asdict(factors).items() if value},
            "measurements": len(used),
            "median_error": median_error(factors, used),
        }
        for name, (factors, used) in fitted.items()
    }


def write_calibration(section: str, found: dict[str, Any], file: Path = CALIBRATION) -> None:
    """Put a section into the calibrations that come with prefold, its figures to four digits."""
    known = json.loads(file.read_text(encoding="utf-8")) | {section: rounded(found)}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Return a figure, or all those of a table, to four digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
