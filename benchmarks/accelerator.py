"""What placements are worth on an accelerator: ``python benchmarks/accelerator.py [--quick]``.

Device memory, decode latency with and without CUDA graphs, and whether the copy of gathered rows overlaps with
anything. Where there is no accelerator it says so and ends.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import megabytes, table
from shapes import PHI_1_5, PYTHIA_70M, PYTHIA_410M, Shape, built
from timing import compared, in_turn, load, random_tokens
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, StaticCache

from prefold.convert import convert_checkpoint

_DEVICE = "cuda"
_SHAPES = (PYTHIA_410M, PHI_1_5)
_CASES: dict[str, dict[str, str]] = {"source": {}} | {p: {"prefold_placement": p} for p in ("device", "host", "disk")}
_PROMPT, _LONG, _STEPS, _ROUNDS, _WARM_UP = 32, 4096, 32, 9, 8
Span = tuple[float, float]


class _Decoder:
    """A model that has read a prompt into a cache of fixed size, and decodes greedily from there."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, call: Callable[..., Any]) -> None:
        length = _PROMPT + _WARM_UP + (_ROUNDS + 2) * _STEPS
        self._cache, self._call = StaticCache(config=model.config, max_cache_len=length), call
        prompt = random_tokens(model.config.vocab_size, 1, _PROMPT).to(_DEVICE)
        out = model(prompt, past_key_values=self._cache, use_cache=True)
        self._token = out.logits[:, -1:].argmax(-1)
        self.decode(_WARM_UP)  # compiles and captures, where the call does

    @torch.no_grad()
    def decode(self, steps: int) -> float:
        """Return the seconds of a step, from the mean of some."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            out = self._call(self._token, past_key_values=self._cache, use_cache=True)
            self._token = out.logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps


def _load(folder: Path, options: dict[str, str]) -> tuple[PreTrainedModel, int]:
    """Return a model on the device, and the bytes that it takes there."""
    before = torch.cuda.memory_allocated()
    model = load(folder, device_map=_DEVICE, **options)
    return model, torch.cuda.memory_allocated() - before


def _graphed(model: PreTrainedModel) -> _Decoder | str:
    """Return a decoder whose steps are captured as CUDA graphs, or why there is none."""
    try:
        return _Decoder(model, torch.compile(model, mode="reduce-overhead"))
    except RuntimeError as error:  # of the compiler or of the capture
        return str(error).strip().partition("\n")[0]


def _launches(decoder: _Decoder, steps: int = 4) -> tuple[float, float]:
    """Return how many graphs, and how many kernels beside them, one step launches: what was captured, and what not."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        decoder.decode(steps)
    counts = {event.key: event.count for event in seen.key_averages()}
    kernels = sum(count for key, count in counts.items() if key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    return counts.get("cudaGraphLaunch", 0) / steps, kernels / steps


def _latency(models: dict[str, PreTrainedModel]) -> list[list[str]]:
    """Time steps of all models, with and without graphs, in turn; returns the rows of a table."""
    torch.compiler.reset()
    made: dict[tuple[str, str], _Decoder | str] = {}
    for name, model in models.items():
        made[name, "eager"], made[name, "graphs"] = _Decoder(model, model), _graphed(model)
    timed = {key: partial(each.decode, _STEPS) for key, each in made.items() if isinstance(each, _Decoder)}
    seconds = in_turn({" ".join(key): decode for key, decode in timed.items()}, _ROUNDS)
    return [_latency_row(key, each, seconds) for key, each in made.items()]


def _latency_row(key: tuple[str, str], made: _Decoder | str, seconds: dict[str, list[float]]) -> list[str]:
    if isinstance(made, str):
        return [*key, "", "", "", f"not captured: {made}"]
    own, on_device = (seconds.get(f"{name} {key[1]}") for name in (key[0], "device"))
    graphs, kernels = _launches(made)
    ratio = f"{compared(own, on_device)['ratio']:.3f}" if own and on_device else ""
    return [*key, f"{median(own or [0.0]) * 1e3:.3f}", ratio, f"{graphs:.1f}", f"{kernels:.1f}"]


def _covered(span: Span, others: Sequence[Span]) -> float:
    """Return how much of a span lies within others, each moment counted once."""
    covered, reached = 0.0, span[0]
    for start, stop in sorted(others):
        start, stop = max(start, reached), min(stop, span[1])
        if start < stop:
            covered, reached = covered + stop - start, stop
    return covered


def _copies(run: Callable[[], object]) -> tuple[float, float]:
    """Return the microseconds of copies from host to device, and how many of them ran beside kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    events = [event for event in seen.events() or [] if event.device_type == DeviceType.CUDA]
    spans = [(event.name, (event.time_range.start, event.time_range.end)) for event in events]
    copies = [span for name, span in spans if name.startswith("Memcpy HtoD")]
    kernels = [span for name, span in spans if not name.startswith(("Memcpy", "Memset"))]
    return sum(stop - start for start, stop in copies), sum(_covered(copy, kernels) for copy in copies)


def _returned(model: PreTrainedModel) -> tuple[float, float, bool]:
    """Return the seconds until a long look-up returned and until its rows were there, and whether these differ."""
    look_up: Any = model.get_input_embeddings()
    ids, arrived = random_tokens(model.config.vocab_size, 1, _LONG).to(_DEVICE), torch.cuda.Event()
    for _ in range(2):  # the first one makes room
        torch.cuda.synchronize()
        start = time.perf_counter()
        look_up(ids)
        arrived.record()
        early, returned = not arrived.query(), time.perf_counter() - start
        torch.cuda.synchronize()
        there = time.perf_counter() - start
        look_up.row.forget()
    return returned, there, early


@torch.no_grad()
def _overlap_row(name: str, model: PreTrainedModel) -> list[str]:
    ids = random_tokens(model.config.vocab_size, 1, _LONG // 8).to(_DEVICE)
    model(ids)
    copied, beside = _copies(partial(model, ids))
    returned, there, early = _returned(model)
    return [
        name, f"{copied:,.0f}", f"{beside:,.0f}", f"{returned * 1e3:.3f}", f"{there * 1e3:.3f}",
        "yes" if early else "no",
    ]  # fmt: skip


def _measure(shape: Shape) -> str:
    with built(shape) as source:
        out = convert_checkpoint(str(source), source.with_name("folded")).out
        loaded = {name: _load(out if options else source, options) for name, options in _CASES.items()}
        models = {name: model for name, (model, _) in loaded.items()}
        latency = _latency(models)
        overlap = [_overlap_row(name, model) for name, model in models.items() if name != "source"]
    memory = [[name, megabytes(taken)] for name, (_, taken) in loaded.items()]
    copied = ["", "copied us", "beside kernels us", "returned ms", "rows there ms", "returned before"]
    return "\n\n".join(
        [
            f"## {shape.name}",
            table(["", "device memory MB"], memory),
            table(["", "", "ms per step", "device / this", "graphs per step", "kernels beside graphs"], latency),
            table(copied, overlap),
        ]
    )


def main() -> None:
    """Measure every shape, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        sys.stdout.write("no accelerator that runs CUDA: nothing was measured\n")
        return
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n")
    shapes = (PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=4096),) if quick else _SHAPES
    for shape in shapes:
        sys.stdout.write(f"{_measure(shape)}\n\n")


if __name__ == "__main__":
    main()
