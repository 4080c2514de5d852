"""What it costs and saves to keep the table elsewhere: resident memory, decode speed, time to the first token."""

import sys
from pathlib import Path
from typing import Any

from case import run_case
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import megabytes, table
from plots import COLOURS, Plot, link
from shapes import PHI_1_5, PYTHIA_70M, PYTHIA_410M, Shape, built

from prefold.convert import convert_checkpoint
from prefold.convert.checkpoint.files import TABLE

SOURCE, PLACEMENTS = "source", ("device", "host", "disk")
_SHAPES = (PYTHIA_410M, PHI_1_5)
_STEPS, _ROUNDS, _PROMPTS = 8, 9, (16, 512)
_GOAL = 0.98


def _measure(shape: Shape, steps: int, rounds: int, prompts: tuple[int, ...]) -> dict[str, Any]:
    with built(shape) as source:
        out = convert_checkpoint(str(source), source.with_name("folded")).out
        cases = {SOURCE: (source, ""), **{placement: (out, placement) for placement in PLACEMENTS}}
        found = {
            "shape": shape.name,
            "source_bytes": _weights(source),
            "folded_bytes": _weights(out),
            "table_bytes": (out / TABLE).stat().st_size,
            "memory": {name: run_case("placement_memory", *case) for name, case in cases.items()},
            **run_case("placement_speed", out, steps, rounds, *prompts),
        }
    sys.stderr.write(f"{shape.name} done\n")
    return found


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure memory in a process for each placement, and speeds in one process for all."""
    if quick:
        small = PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=4096)
        return [_measure(small, 4, 2, (4, 32))]
    return [_measure(shape, _STEPS, _ROUNDS, _PROMPTS) for shape in _SHAPES]


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    """Draw a bar for each process with all parameters read, and marks for what it held before."""
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, found in zip(panels, figures, strict=True):
        _draw_bars(axes, found["memory"])
        axes.set_title(found["shape"])
    panels[0].set_ylabel("resident memory, MB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _draw_bars(axes: Axes, memory: dict[str, Any]) -> None:
    names = [SOURCE, *PLACEMENTS]
    bottom = [0.0] * len(names)
    for index, (part, told) in enumerate(_PARTS.items()):
        sizes = [memory[name]["all"][part] / 1e6 for name in names]
        axes.bar(names, sizes, bottom=bottom, color=COLOURS[index], label=f"all read, {told}", width=0.6)
        bottom = [low + size for low, size in zip(bottom, sizes, strict=True)]
    marks = {"after a text": [memory[name]["used"]["rss"] for name in names]}
    marks |= {"peak while loading": [memory[name]["peak"] for name in names]}
    for index, (told, sizes) in enumerate(marks.items()):
        heights, ink = [size / 1e6 for size in sizes], (COLOURS[3], "#1f2328")[index]
        axes.plot(names, heights, color=ink, linestyle="", marker="_", markersize=26, markeredgewidth=2, label=told)
    axes.axhline(bottom[0], color=COLOURS[6], linestyle="--", linewidth=1, label="the source, all read")
    axes.grid(visible=False, axis="x")


_PARTS = {"anon": "anonymous", "file": "of files"}
PLOTS: dict[str, Plot] = {"placement": _draw}


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    memory = ["bf16", "", "files MB", "libraries MB", "loaded MB", "peak MB", "after a text MB", "all read MB"]
    decode = ["", "pass", "device tokens/s", *(f"{name} / device" for name in PLACEMENTS[1:])]
    first = ["", "prompt", "", "first token ms", "/ device", "table in memory before", "fetched MB", "major faults"]
    parts = [
        _MEMORY,
        table([*memory, "anonymous MB", "of files MB"], _memory_rows(figures)),
        _DECODE.format(goal=_GOAL),
        table(decode, _decode_rows(figures)),
        _FIRST,
        table(first, _first_rows(figures)),
    ]
    return "\n".join(parts)


def _memory_rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            found["shape"],
            name,
            megabytes(found["source_bytes" if name == SOURCE else "folded_bytes"]),
            megabytes(each["before"]["rss"]),
            megabytes(each["loaded"]["rss"]),
            megabytes(each["peak"]),
            megabytes(each["used"]["rss"]),
            *(megabytes(each["all"][part]) for part in ("rss", "anon", "file")),
        ]
        for found in figures
        for name, each in found["memory"].items()
    ]


def _decode_rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            found["shape"],
            f"decode, batch {each['batch']}",
            f"{each['tokens'] / each['seconds']['device']:,.1f}",
            *(_ratio(each["to_device"][placement]) for placement in PLACEMENTS[1:]),
        ]
        for found in figures
        for each in found["decode"]
    ]


def _first_rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            found["shape"],
            f"{each['prompt']} tokens",
            case,
            f"{seconds * 1e3:,.1f}",
            _ratio(each["to_device"][case]),
            f"{each['table'][case]['held']:.1%}",
            f"{each['table'][case]['bytes'] / 1e6:.1f}",
            f"{each['table'][case]['faults']:,.0f}",
        ]
        for found in figures
        for each in found["first"]
        for case, seconds in each["seconds"].items()
    ]


def _ratio(compared: dict[str, float]) -> str:
    return f"{compared['ratio']:.3f} ({compared['low']:.3f} to {compared['high']:.3f})"


_MEMORY = f"""## Placement

{link("placement", "Resident memory of the source and of every placement of the table")}

Resident memory of a process that has loaded its libraries before, and loads one checkpoint with `from_pretrained` on
the CPU; each line is a process of its own. There transformers maps the files of a checkpoint, so that after loading
hardly any page of a weight is in memory, whatever the placement. What counts is what comes in later: **after a text**
of 16 tokens read and 16 generated, and **all read**, when every parameter was read once, as after the whole vocabulary
was used, or with a loader that copies weights. A table on disk is no parameter. **of files**: pages of mapped files,
which the system may take back, and which processes share. **anonymous**: all else. On a CPU `host` reads the table into
memory of the process, where nothing maps it.
"""
_DECODE = """
Decode speed in one process that has loaded the checkpoint once for each placement. All use the same weights in memory,
so that they differ in the table alone; tokens are random, so that no step finds its row in a cache. The system holds
all of the table's file. Ratios are the placement's tokens/s / those of `device`, medians of the rounds, and the middle
half of the rounds. The goal is {goal} for `disk`.
"""
_FIRST = """
Time to the first token, in turn. **warm**: the system holds all of the table's file in memory. **cold**: process and
system were made to forget it. Which part of it they held before the prompt is shown, how much the process had fetched
from the disk, and how often it waited for a page that nobody had asked for before. A disk's own cache, or that below a
virtual disk, is out of reach. **/ device**: how many times longer than with `device`.
"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
