"""Fit engines to served workloads, and check the plan by them: ``python -m benchmarks.serving MEASURED``.

Writes ``plan/calibration.json``, the section on served workloads of ``docs/plan-validation.md``, and its picture.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.kernel_times import VERSIONS, fit_kernels
from benchmarks.page import table
from benchmarks.plan_page import write_section
from benchmarks.published import published_rows
from benchmarks.served import (
    Checked,
    Fit,
    Row,
    fit,
    fitting,
    held_out,
    ideal_share,
    parts_of,
    predicted,
    read_rows,
    write,
)
from prefold.common.figures import INK, drawn
from prefold.plan.calibration import Kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "served.png"
_INCHES = (10, 4.8)
_MS = 1e3
_COLOURS = {"vllm": "#2f6fb0", "sglang": "#b7791f", "tensorrt-llm": "#2f7d4a"}
_TEXT = """## Served workloads

Written by `python -m benchmarks.serving MEASURED`, from `serving.csv` beside the kernels' rows. The rows are {rows:,}
workloads in steady state, measured by InferenceX and NVIDIA and collected by ai-dynamo/aiconfigurator (commit
095f58a51, Apache-2.0): {models} models on {chips}, tensor parallelism within a node, everything that
fits at once. Left out are other layouts, 4-bit weights alone (`int4_wo`), and DeepSeek-R1, whose runs lie up to a third
below DeepSeek-V3's on the same chips and may have drafted.

Kernels explain most of a time; of each engine two numbers are fitted to times between tokens and two to first tokens,
and one of each generation of chips to experts' products, of which no kernels were at hand:

{factors}

![Measured and predicted](pictures/served.png)

"Seen" is a fit to one half of the rows, chosen at random, that predicts the other. An "unseen chip" is predicted by the
kernels of all other chips and by a fit without its rows; an "unseen model" by a fit without its rows.

{errors}

{below} of these times between tokens lie below the ideal one; the shortest is {share:.2f} times its own.

Errors of other planners in the time between tokens, as published or as found on 13 runs on H100: Vidur 10.3 % (4 of
the runs), AIConfigurator 21.2 % (9), BLIS 22.4 % fitted and 53.5 % from the roofline (15), llm-optimizer 55.7 % (11);
BLIS on its own 36 runs 7.1 %, and 13.3 to 15.7 % on chips that it was not fitted to. Those are means over other runs
than these, so that they show an order of magnitude and no rank.

### Models and chips

{groups}

### Other published times

Steps of one engine at a time, which nothing was fitted to. There `plan` has a chip's kernels and no engine, so that an
engine's own time comes on top. An unseen chip is predicted from its data sheet.

{published}
"""


def write_page(folder: Path, fitted: Fit, rows: Sequence[Row], checked: Sequence[Checked]) -> None:
    """Write the section and the picture."""
    _PICTURE.write_bytes(drawn(lambda figure: _draw(figure, checked), _INCHES, "png"))
    systems, shares = sorted({row.system for row in rows}), [ideal_share(row) for row in rows]
    text = _TEXT.format(
        rows=len(rows),
        models=len({row.model for row in rows}),
        chips=", ".join(systems),
        factors=table(*_factors(fitted)),
        errors=table(["", "rows", "between tokens", "nine in ten", "first token"], list(_errors(folder, rows))),
        below=sum(share < 1 for share in shares),
        share=min(shares),
        groups=table(["engine", "model", "chip", "rows", "between tokens", "first token"], list(_groups(checked))),
        published=table(["", "measured", "predicted", "error", "kernels of"], list(published_rows())),
    )
    write_section("served", text)


def _factors(fitted: Fit) -> tuple[list[str], list[list[str]]]:
    head = ["engine", "kernels x", "each step", "a request's start", "prefills waited for, of each sequence"]
    rows = [
        [name, f"{each.kernels:.2f}", f"{each.step * _MS:.1f} ms", f"{each.accept * _MS:.0f} ms", f"{each.wait:.3f}"]
        for name, each in fitted.engines.items()
    ]
    return head, rows + [[f"experts on {name}", f"{each:.2f}", "", "", ""] for name, each in fitted.experts.items()]


def _errors(folder: Path, rows: Sequence[Row]) -> Iterator[list[str]]:
    half = dict(zip(map(id, rows), np.random.default_rng(0).permutation(len(rows)) % 2, strict=True))

    def without(chip: str) -> dict[str, Kernels]:
        return fit_kernels(folder, [name for name in VERSIONS if name != chip])

    kinds = {
        "seen": held_out(rows, lambda row: str(half[id(row)])),
        "unseen chip": held_out(rows, lambda row: row.system, without),
        "unseen model": held_out(rows, lambda row: row.model),
    }
    for name, found in kinds.items():
        yield [name, *_median(found)]
        yield [f"{name}, dense", *_median([each for each in found if not each.row.estimate.case.shape.experts])]


def _median(found: Sequence[Checked]) -> list[str]:
    tokens, firsts = (np.abs([getattr(each, f"{kind}_error") for each in found]) for kind in ("tpot", "ttft"))
    middle = f"{np.median(tokens):.1%}", f"{np.quantile(tokens, 0.9):.0%}", f"{np.median(firsts):.0%}"
    return [f"{len(found):,}", *middle]


def _groups(checked: Iterable[Checked]) -> Iterator[list[str]]:
    def key(each: Checked) -> tuple[str, str, str]:
        return each.row.service.engine, each.row.model.split("/")[1], each.row.system

    for names, group in groupby(sorted(checked, key=key), key):
        found = list(group)
        signed = (np.median([getattr(each, f"{kind}_error") for each in found]) for kind in ("tpot", "ttft"))
        yield [*names, str(len(found)), *(f"{each:+.0%}" for each in signed)]


def _draw(figure: "Figure", checked: Sequence[Checked]) -> None:
    titles = {"tpot": "from token to token, ms", "ttft": "to the first token, ms"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        _scatter(axes, checked, kind)
        axes.set(xscale="log", yscale="log", xlabel=f"measured {title}", ylabel="predicted, ms")
        axes.legend()


def _scatter(axes: "Axes", checked: Sequence[Checked], kind: str) -> None:
    for name, colour in _COLOURS.items():
        found = [each for each in checked if each.row.service.engine == name]
        measured, predicted = ([getattr(x, kind) * _MS for x in xs] for xs in ([each.row for each in found], found))
        axes.plot(measured, predicted, ".", color=colour, markersize=3, alpha=0.6, label=name)
    ends = [
        min(getattr(each.row, kind) for each in checked) * _MS,
        max(getattr(each.row, kind) for each in checked) * _MS,
    ]
    axes.plot(ends, ends, color=INK, linewidth=1, label="equal")


def main() -> None:
    """Fit, write, and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    folder = parser.parse_args().measured
    rows = fitting(read_rows(folder / "serving.csv"))
    parts = [parts_of(row) for row in rows]
    fitted = fit(rows, parts)
    write(fitted, f"{len(rows):,} served workloads of InferenceX and NVIDIA, collected by ai-dynamo/aiconfigurator")
    write_page(folder, fitted, rows, predicted(fitted, rows, parts))


if __name__ == "__main__":
    main()
