"""Attention to a shared prefix on an accelerator: ``python benchmarks/tree_gpu.py [--quick] [--sweep]``.

One layer's decoding step of Llama 3 8B's shape: the Triton kernels, against the time that reading the physical bytes
takes at the bandwidth of a copy, against each branch over its own expanded cache, and against FlexAttention and, where
it is installed, FlashInfer. Writes its section of ``docs/benchmarks.md``. Where there is no accelerator it says so and
ends.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import table
from timing import in_turn
from tree_gpu_case import Layers, Run, Work

_ROUNDS, _REPEATS, _COPY = 9, 10, 1 << 30
_SIZES, _STAGES = (128, 256, 512), (2, 3)
_TARGET, _LOOSE = 1.2, 1e-2  # of the ideal time; of the largest value, in float16


_WORKS = [Work(prompt, branches) for prompt in (4000, 16000) for branches in (16, 32, 64)]
_QUICK = Work(300, 4, 20, heads=4, kv_heads=2, head_dim=16)


class Captured:
    """Calls for some layers in turn, in one CUDA graph, so that launches cost as little as they can."""

    def __init__(self, run: Run, layers: int) -> None:
        for layer in range(min(3, layers)):  # compiles
            run(layer)
        torch.cuda.synchronize()
        self._graph, self._layers = torch.cuda.CUDAGraph(), layers
        with torch.cuda.graph(self._graph):
            for layer in range(layers):
                run(layer)

    def seconds(self) -> float:
        """Return the seconds of one call, from the mean of many."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_REPEATS):
            self._graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / _REPEATS / self._layers


def copy_bandwidth(device: str) -> float:
    """Return bytes that a copy within the memory moves in a second, read and written, from the best of some."""
    source = torch.empty(_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = Captured(lambda _: target.copy_(source), 1)
    return 2 * _COPY / min(copy.seconds() for _ in range(_ROUNDS))


def compared(work: Work, bandwidth: float, seconds: dict[str, float], wrong: dict[str, str]) -> dict[str, Any]:
    """Return the figures of some work: times, and what they are of the time that the physical bytes take."""
    ideal = work.physical_bytes / bandwidth
    return {
        "prompt": work.prompt,
        "branches": work.branches,
        "tokens": work.tokens,
        "physical_bytes": work.physical_bytes,
        "expanded_bytes": work.expanded_bytes,
        "bandwidth": bandwidth,
        "ideal_s": ideal,
        "seconds": seconds,
        "to_ideal": {name: each / ideal for name, each in seconds.items()},
        "failed": wrong,
    }


def _candidates(layers: Layers, *, sweep: bool) -> dict[str, Callable[[], Run]]:
    """Return what is timed, by name; it is made when its turn comes."""
    sizes, stages = (_SIZES, _STAGES) if sweep else (_SIZES, _STAGES[:1])
    made: dict[str, Callable[[], Run]] = {
        f"Triton, blocks of {size}" + f", {stage} stages" * sweep: partial(layers.by_triton, size, stage)
        for size in sizes
        for stage in stages
    }
    made["FlexAttention"] = lambda: layers.by_flex(torch.compile(torch.nn.attention.flex_attention.flex_attention))
    if importlib.util.find_spec("flashinfer"):
        made["FlashInfer cascade"] = layers.by_flashinfer
    return made


def _captured(layers: Layers, expected: torch.Tensor, make: Callable[[], Run]) -> Captured | str:
    """Return something to be timed, or why there is nothing: another back end may not know a new GPU."""
    try:
        run = make()
        difference = float((run(0) - expected).abs().max() / expected.abs().max())
        return Captured(run, layers.count) if difference < _LOOSE else f"wrong by {difference:.1e}"
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@torch.no_grad()
def _measure(work: Work, bandwidth: float, *, sweep: bool) -> dict[str, Any]:
    torch.compiler.reset()
    layers = Layers(work, work.layers(torch.cuda.get_device_properties(0).L2_cache_size), "cuda")
    by_branch = layers.by_branch()
    made = {name: _captured(layers, by_branch(0), make) for name, make in _candidates(layers, sweep=sweep).items()}
    timed = {name: each for name, each in made.items() if isinstance(each, Captured)}
    timed["each branch"] = Captured(by_branch, 1)  # expanded, one layer is more than a processor's cache holds
    seconds = in_turn({name: each.seconds for name, each in timed.items()}, _ROUNDS)
    failed = {name: each for name, each in made.items() if isinstance(each, str)}
    figures = compared(work, bandwidth, {name: median(each) for name, each in seconds.items()}, failed)
    return figures | {"device": torch.cuda.get_device_name(), "build_s": _built(layers)}


def _built(layers: Layers) -> float:
    """Return the seconds that a step takes to build the tree's metadata and bring it to the device."""
    found = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        layers.blocks()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found)


def measure(*, quick: bool = False, sweep: bool = False) -> list[dict[str, Any]]:
    """Return the figures."""
    bandwidth = copy_bandwidth("cuda")
    return [_measure(work, bandwidth, sweep=sweep) for work in ([_QUICK] if quick else _WORKS)]


def render(figures: list[dict[str, Any]]) -> str:
    """Write them as Markdown."""
    names = list(dict.fromkeys(name for each in figures for name in each["seconds"]))
    rows = [
        [
            f"{each['prompt']:,}, {each['branches']}",
            f"{each['physical_bytes'] / 1e6:,.1f}",
            f"{each['ideal_s'] * 1e6:.1f}",
        ]
        + [_cell(each, name) for name in names]
        + [f"{each['build_s'] * 1e6:,.0f}"]
        for each in figures
    ]
    best = [min(ratio for name, ratio in each["to_ideal"].items() if name.startswith("Triton")) for each in figures]
    first, met = figures[0], sum(each <= _TARGET for each in best)
    return "\n\n".join(
        [
            "## Trees on a GPU",
            f"A decoding step's attention in one layer of Llama 3 8B's shape, float16, on one {first['device']}:"
            f" branches of {first['tokens']} tokens of one prompt. Microseconds, and what they are of the time that"
            " keys and values, each read once, take at the bandwidth that a copy reached in the same run,"
            f" {first['bandwidth'] / 1e12:.2f} TB/s. Calls are captured in CUDA graphs, over as many layers as exceed"
            " the processor's cache.",
            table(["prompt, branches", "MB", "ideal us", *names, "metadata us"], rows),
            f"The target, {_TARGET} times the ideal, is met in {met} of {len(figures)} cases.",
            *sorted({f"{name} was not timed: {why}." for each in figures for name, why in each["failed"].items()}),
        ]
    )


def _cell(figures: dict[str, Any], name: str) -> str:
    found = figures["seconds"].get(name)
    return "" if found is None else f"{found * 1e6:.1f} ({figures['to_ideal'][name]:.2f}x)"


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small shape, shown and not written")
    parser.add_argument("--sweep", action="store_true", help="more ways to launch the kernels, shown and not written")
    parser.add_argument("--docs", type=Path, help="where to write (default: docs)")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("no accelerator that runs CUDA: nothing was measured\n")
    elif asked.quick or asked.sweep:
        sys.stdout.write(f"{render(measure(quick=asked.quick, sweep=asked.sweep))}\n")
    else:
        import run

        run.SECTIONS.setdefault("tree on a GPU", sys.modules[__name__])
        run._write(asked.docs or run._DOCS, ["tree on a GPU"])


if __name__ == "__main__":
    main()
