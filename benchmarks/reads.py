"""What a decode step reads, source and folded, at every batch, and where the two break even: computed, not timed."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import megabytes, table
from plots import COLOURS, Plot, link, plain_numbers, powers_of_two
from shapes import LARGE, MISTRAL, PHI_1_5, PYTHIA_6_9B, PYTHIA_70M, PYTHIA_410M, SERIAL, Shape
from transformers import AutoConfig

from prefold.convert.checkpoint.source import open_config
from prefold.convert.fold.reads import ParameterReads, break_even_batch, count_reads
from prefold.convert.model.load import load_config, resolve_model
from prefold.convert.study import study_model

_SHAPES = (PYTHIA_410M, PHI_1_5, PYTHIA_6_9B, SERIAL, LARGE, MISTRAL)
_LARGEST = 1 << 17


def census_of(shape: Shape) -> ParameterReads:
    """Return what a step reads of every parameter, from the config alone."""
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        AutoConfig.for_model(shape.model_type, **shape.settings).save_pretrained(folder)
        opened = open_config(str(Path(folder) / "config.json"))
        config = load_config(opened)
        return study_model(resolve_model(opened, config).model_class, config).census


def batches_around(break_even: int | None) -> list[int]:
    """Return powers of two from 1 to some way beyond the break-even batch."""
    last = min(4 * (break_even or _LARGEST), _LARGEST)
    return [1 << power for power in range(last.bit_length())]


def _count(shape: Shape) -> dict[str, Any]:
    census, size = census_of(shape), shape.dtype.itemsize
    break_even = break_even_batch(census)
    reads = [count_reads(census, batch) for batch in batches_around(break_even)]
    return {
        "shape": shape.name,
        "break_even": break_even,
        "batches": [each.batch for each in reads],
        "before": [each.first_layer_before * size for each in reads],
        "after": [each.first_layer_after * size for each in reads],
        "model_before": reads[0].model_before * size,
        "model_after": reads[0].model_after * size,
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Count the reads of every shape."""
    return [_count(shape) for shape in ((PYTHIA_70M,) if quick else _SHAPES)]


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    columns = min(len(figures), 3)
    panels = figure.subplots(-(-len(figures) // columns), columns, sharey=True, squeeze=False)
    for axes, found in zip(panels.flat, figures, strict=False):
        _draw_shape(axes, found)
    for axes in list(panels.flat)[len(figures) :]:
        axes.set_visible(False)
    figure.supxlabel("batch, tokens per decode step")
    figure.supylabel("first layer's reads per step, MB")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _draw_shape(axes: Axes, found: dict[str, Any]) -> None:
    for name, key, colour in (("source", "before", COLOURS[1]), ("folded", "after", COLOURS[0])):
        axes.plot(found["batches"], [count / 1e6 for count in found[key]], color=colour, label=name)
    powers_of_two(axes, found["batches"])
    axes.set_xticks(ticks := [1 << power for power in range(0, len(found["batches"]), 4)], [f"{x:,}" for x in ticks])
    axes.set_yscale("log")
    plain_numbers(axes)
    if found["break_even"]:
        axes.axvline(found["break_even"], color=COLOURS[3], linestyle="--", label="break-even", linewidth=1.2)
        axes.annotate(
            f"{found['break_even']:,}", (found["break_even"], 0.04), xycoords=("data", "axes fraction"),
            xytext=(-4, 0), textcoords="offset points", ha="right", color=COLOURS[3],
        )  # fmt: skip
    axes.set_title(found["shape"])


PLOTS: dict[str, Plot] = {"reads": _draw}


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = [
        "bf16",
        "first layer before MB",
        "after MB",
        "whole model before MB",
        "after MB",
        "saved",
        "break-even batch",
    ]
    rows = [
        [
            f["shape"],
            *(f"{f[key][0] / 1e6:,.3f}" for key in ("before", "after")),
            *(megabytes(f[key]) for key in ("model_before", "model_after")),
            f"{1 - f['model_after'] / f['model_before']:.1%}",
            f"{f['break_even']:,}" if f["break_even"] else "none",
        ]
        for f in figures
    ]
    return _TEXT + table(head, rows)


_TEXT = f"""## Reads

Bytes of parameters that one decode step reads, by the formula that `prefold verify` holds against the running model.
Nothing is timed here. The source reads its first layer's folded weights once for each step, whatever the batch, and one
row of the embedding for each token. The folded model reads one row of the table for each token. Up to the break-even
batch, folding reads no more than the source. **saved** is the part of all that a step of one token reads.

{link("reads", "Reads of the first layer per decode step against the batch, source and folded, with the break-even")}

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
