"""How fast rows are fetched: beside a copy of memory, and beside the first layer's work that they replace."""

import sys
from typing import Any

from case import run_case
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import table
from plots import COLOURS, Plot, colour, link, marker, plain_numbers, powers_of_two
from shapes import LARGE, PHI_1_5, PYTHIA_70M, PYTHIA_410M, Shape, built

from prefold.convert import convert_checkpoint

# The whole model would take longer to build, and say nothing more: all that is timed is the first layer.
_SHAPES = tuple(shape.changed(shape.name, num_hidden_layers=1) for shape in (PYTHIA_410M, PHI_1_5, LARGE))
_LONGEST, _ROUNDS = 8192, 21
_GOAL_TOKENS, _GOAL = 4096, 0.7
_SHOWN = (1, 16, 128, 1024, 4096, 8192)
# glibc gives large blocks back to the system, and asks for new ones, each page of which is a fault at its first use.
_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def _measure(shape: Shape, longest: int, rounds: int) -> dict[str, Any]:
    with built(shape) as source:
        out = convert_checkpoint(str(source), source.with_name("folded")).out
        found = run_case("look_up_case", source, out, longest, rounds)
        kept = run_case("look_up_case", "", out, longest, rounds, environment=_KEEP)
    sys.stderr.write(f"{shape.name} done\n")
    return {"shape": shape.name, **found, "kept": kept["bandwidth"]}


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Time every shape in processes of their own: with memory as it comes, and with memory that is kept."""
    if quick:
        return [_measure(PYTHIA_70M.changed("small", num_hidden_layers=1, vocab_size=4096), 16, 2)]
    return [_measure(shape, _LONGEST, _ROUNDS) for shape in _SHAPES]


def _draw_bandwidth(figure: Figure, figures: list[dict[str, Any]]) -> None:
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axes, found in zip(panels, figures, strict=True):
        _draw_bandwidths(axes, found)
    figure.supxlabel("tokens")
    figure.supylabel("GB/s, read and written")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _draw_bandwidths(axes: Axes, found: dict[str, Any]) -> None:
    lines = {
        "copy, used memory": ("bandwidth", "copy_s"),
        "copy, new memory": ("bandwidth", "new_s"),
        "look-up": ("bandwidth", "device_s"),
        "look-up, kept memory": ("kept", "device_s"),
        "look-up on disk, kept memory": ("kept", "disk_s"),
    }
    for index, (name, (part, key)) in enumerate(lines.items()):
        speeds = [each["bytes"] / each[key] / 1e9 for each in found[part]]
        axes.plot([each["tokens"] for each in found[part]], speeds, label=name, color=colour(index))
    _scale(axes, [each["tokens"] for each in found["bandwidth"]])
    axes.set_title(found["shape"])


def _scale(axes: Axes, tokens: list[int]) -> None:
    powers_of_two(axes, tokens)
    axes.set_xticks(ticks := tokens[::3], [f"{count:,}" for count in ticks])
    axes.set_yscale("log")
    plain_numbers(axes)


def _draw_prefill(figure: Figure, figures: list[dict[str, Any]]) -> None:
    """Draw how many times faster rows are fetched than the source computes what is in them."""
    axes = figure.subplots()
    for index, found in enumerate(figures):
        keys = ("tokens", "ratio", "low", "high")
        tokens, ratios, low, high = ([each[key] for each in found["prefill"]] for key in keys)
        axes.fill_between(tokens, low, high, color=colour(index), alpha=0.2, linewidth=0)
        axes.plot(tokens, ratios, color=colour(index), marker=marker(index), label=found["shape"])
    axes.axhline(1, color=COLOURS[3], linestyle="--", linewidth=1.2, label="as fast as the source")
    powers_of_two(axes, [each["tokens"] for each in figures[0]["prefill"]])
    axes.set_yscale("log")
    plain_numbers(axes)
    axes.set_xlabel("tokens")
    axes.set_ylabel("the source's time / the look-up's")
    axes.legend()


PLOTS: dict[str, Plot] = {"look-up-bandwidth": _draw_bandwidth, "look-up-prefill": _draw_prefill}


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["", "tokens", "MB", "copy GB/s", "copy, new memory GB/s", "look-up GB/s", "/ copy", "/ copy, new memory"]
    head += ["kept memory GB/s", "/ copy", "on disk, kept memory GB/s"]
    lowest = {f["shape"]: min(f["prefill"], key=lambda each: each["ratio"]) for f in figures}
    told = ", ".join(f"{shape} {each['ratio']:.1f} ({each['tokens']:,} tokens)" for shape, each in lowest.items())
    parts = [
        _BANDWIDTH.format(goal=_GOAL, tokens=f"{_GOAL_TOKENS:,}"),
        table(head, map(_bandwidth_row, figures)),
        _PREFILL.format(lowest=told),
        table(["", "tokens", "source ms", "look-up ms", "ratio", "middle half", "ratio, read"], _prefill_rows(figures)),
    ]
    return "\n".join(parts)


def _bandwidth_row(found: dict[str, Any]) -> list[str]:
    """Tell of the goal's number of tokens, or of the largest there is."""
    fresh, kept = (max((e for e in found[part] if e["tokens"] <= _GOAL_TOKENS), key=_tokens) for part in _PARTS)
    speeds = {key: f"{fresh['bytes'] / fresh[f'{key}_s'] / 1e9:.1f}" for key in ("copy", "new", "device")}
    return [
        found["shape"], f"{fresh['tokens']:,}", f"{fresh['bytes'] / 2e6:.1f}", *speeds.values(),
        _share(fresh["to_copy"]), _share(fresh["to_new"]), f"{kept['bytes'] / kept['device_s'] / 1e9:.1f}",
        _share(kept["to_copy"]), f"{kept['bytes'] / kept['disk_s'] / 1e9:.1f}",
    ]  # fmt: skip


_PARTS = ("bandwidth", "kept")


def _tokens(each: dict[str, Any]) -> int:
    count: int = each["tokens"]
    return count


def _share(compared: dict[str, float]) -> str:
    return f"{compared['ratio']:.2f} ({compared['low']:.2f} to {compared['high']:.2f})"


def _prefill_rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            found["shape"], f"{each['tokens']:,}", f"{each['source_s'] * 1e3:,.3f}", f"{each['folded_s'] * 1e3:,.3f}",
            f"{each['ratio']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", f"{each['read']['ratio']:.2f}",
        ]
        for found, each in ((found, each) for found in figures for each in found["prefill"])
        if each["tokens"] in _SHOWN
    ]  # fmt: skip


_BANDWIDTH = f"""## Look-up

Checkpoints with the shapes' first layer alone, in bf16: nothing else is timed. Every look-up is of other random tokens,
and 256 MB of something else are read before it, so that neither rows nor weights are in the processor's caches: between
two look-ups a model reads all of its other layers. All is measured in turn, in one process; figures are medians.

{link("look-up-bandwidth", "Bandwidth of look-ups and of copies of as many bytes, against the number of tokens")}

Bytes count twice, as read and as written.

- **copy**: a copy of as many bytes as the rows have, between two buffers that were used before. **new memory**: a copy
  into memory that is allocated for it. The rows of a look-up lie in such memory, too.
- **look-up**: the table's module, called with the tokens. The goal is {{goal}} of a copy's bandwidth at {{tokens}}
  tokens. Two of the shares compare like with like: both into new memory, and both into memory that was used before. The
  third, of new memory with used, is what a first touch of memory costs, and any other operation with a large result.
- **kept memory**: the same in a process that keeps freed memory for the next allocation, as other allocators and those
  of accelerators do (`MALLOC_MMAP_MAX_=0` and a large `MALLOC_TRIM_THRESHOLD_` for glibc). Otherwise a large block
  comes from the system, page by page, and so does every other large tensor of a long prompt.
- **on disk**: the table is mapped from its file, all of which the system has in memory.
- Shares are medians of the rounds' ratios, and the middle half of the rounds.
"""
_PREFILL = f"""
{link("look-up-prefill", "Time of the source's first-layer work over time of the look-up, from 1 to 8192 tokens")}

The look-up against the work that it replaces, with memory as it comes: both models' embedding, norms and projections
(and the FFN of parallel blocks) are called as the first layer calls them, for as many tokens; in the folded model these
are stand-ins. **ratio**: the source's time / the look-up's. **ratio, read**: the time until everything returned was
read once, too, which takes as long in both unless slices of rows are slower to read. The lowest ratios at any length:
{{lowest}}.
"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
