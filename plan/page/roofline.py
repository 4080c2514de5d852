"""The roofline of a chip: how fast it can calculate, by how many operations there are for each byte of its memory."""

from dataclasses import dataclass

from prefold.plan.estimate import Estimate


@dataclass(frozen=True)
class Roof:
    """The bounds of one chip: operations per second, and bytes per second of its memory."""

    peak: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which memory is no bound any more."""
        return self.peak / self.bandwidth

    def ceiling(self, intensity: float) -> float:
        """Operations per second that are possible at so many operations per byte."""
        return min(self.peak, self.bandwidth * intensity)


def roof_of(estimate: Estimate) -> Roof:
    """Return the roof of an estimate's chip."""
    case = estimate.case
    return Roof(case.chip.peak_of(case.workload.activations), case.chip.memory_bandwidth)


def intensity(estimate: Estimate) -> float:
    """Operations for each byte that passes through the chip's memory."""
    return estimate.terms.arithmetic / estimate.terms.memory * roof_of(estimate).ridge


def reached(estimate: Estimate) -> float:
    """Operations per second of one chip, by the estimate's basis."""
    return estimate.terms.arithmetic / estimate.seconds * roof_of(estimate).peak
