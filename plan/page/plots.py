"""The pictures of a plan: time against MFU as in figure 1 of the paper, and the roofline. They need matplotlib."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from prefold.common.figures import INK, drawn
from prefold.plan.advice import Advice
from prefold.plan.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

KINDS = (".svg", ".png", ".html")
_MS, _TERA, _PERCENT = 1e3, 1e12, 100
_INCHES = (11, 4.5)
_APART, _FEW_DECADES = 0.03, 1e3
_COLOURS = ("#2f6fb0", "#b7791f", "#2f7d4a", "#6b4fa0", "#3d8f99", "#c2559b", "#59636e", "#8a5a2b")
_CHOSEN = "#a3343a"


def picture(advice: Advice, kind: str = "svg") -> bytes:
    """Draw the sweep and the roofline side by side; ``kind`` is ``svg`` or ``png``."""
    return drawn(lambda figure: _draw(figure, advice), _INCHES, kind)


def _draw(figure: "Figure", advice: Advice) -> None:
    sweep, roofline = figure.subplots(1, 2)
    case = advice.chosen.case
    what = "decode step" if case.workload.phase == "decode" else "prefill"
    figure.suptitle(f"{case.shape.name} on {case.chip.name}: {what}, context {case.workload.context:,}")
    _draw_sweep(sweep, advice)
    _draw_roofline(roofline, advice)


def _fitting(advice: Advice) -> list[Estimate]:
    return [each for each in advice.sweep if each.memory.fits]


def _by_mesh(points: list[Estimate]) -> Iterator[tuple[str, str, list[Estimate]]]:
    groups = groupby(points, key=lambda each: each.case.mesh.chips)
    for index, (chips, found) in enumerate(groups):
        yield f"{chips} chip{'s' if chips > 1 else ''}", _COLOURS[index % len(_COLOURS)], list(found)


def _spread(front: list[Estimate]) -> list[Estimate]:
    kept: list[Estimate] = []
    for each in reversed(front):
        if not kept or kept[-1].mfu - each.mfu > _APART * front[-1].mfu:
            kept.append(each)
    return kept


def _draw_sweep(axes: "Axes", advice: Advice) -> None:
    for label, colour, found in _by_mesh(_fitting(advice)):
        times, shares = [each.seconds * _MS for each in found], [each.mfu * _PERCENT for each in found]
        axes.plot(times, shares, ".-", color=colour, linewidth=0.8, label=label)
    for each in _spread(advice.front):
        at = (each.seconds * _MS, each.mfu * _PERCENT)
        axes.annotate(str(each.case.workload.batch), at, (0, 4), textcoords="offset points", ha="center", fontsize=7)
    front = advice.front
    line = [each.seconds * _MS for each in front], [each.mfu * _PERCENT for each in front]
    axes.plot(*line, color=INK, linewidth=1.4, alpha=0.5, label="not beaten; labels: batch")
    _mark(axes, advice.chosen.seconds * _MS, advice.chosen.mfu * _PERCENT)
    axes.set_xscale("log")
    axes.set(xlabel=f"ms per pass ({advice.chosen.basis})", ylabel=f"MFU, % ({advice.chosen.basis})")
    axes.set_ylim(bottom=0)
    _plain(axes.xaxis)
    axes.legend()


def _draw_roofline(axes: "Axes", advice: Advice) -> None:
    roof, points = roof_of(advice.chosen), [*_fitting(advice), advice.chosen]
    places = [intensity(each) for each in points]
    ends = min([*places, roof.ridge]) / 2, max([*places, roof.ridge]) * 2
    line = [ends[0], roof.ridge, ends[1]]
    axes.plot(line, [roof.ceiling(each) / _TERA for each in line], color=INK, label="one chip's roof (ideal)")
    for label, colour, found in _by_mesh(_fitting(advice)):
        places = [intensity(each) for each in found]
        axes.plot(places, [reached(each) / _TERA for each in found], ".-", color=colour, linewidth=0.8, label=label)
    _mark(axes, intensity(advice.chosen), reached(advice.chosen) / _TERA)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of memory")
    axes.set_ylabel(f"TFLOP/s of one chip ({advice.chosen.basis})")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.legend()


def _plain(axis: "Axis") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < low * _FEW_DECADES else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _mark(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], "o", color=_CHOSEN, markersize=8, label="chosen")


@dataclass(frozen=True)
class Roof:
    """The roofline of one chip: operations per second, and bytes per second of its memory."""

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
    return Roof(case.chip.peak_of(case.workload.compute), case.chip.memory_bandwidth)


def intensity(estimate: Estimate) -> float:
    """Operations for each byte that passes through the chip's memory."""
    return estimate.terms.arithmetic / estimate.terms.memory * roof_of(estimate).ridge


def reached(estimate: Estimate) -> float:
    """Operations per second of one chip, by the estimate's basis."""
    return estimate.terms.arithmetic / estimate.seconds * roof_of(estimate).peak
