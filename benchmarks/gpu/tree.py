"""Part 3: attention to a tree against the bytes that it has to read, and against each branch over its own cache."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from benchmarks.gpu.forest import FORESTS
from benchmarks.gpu.layers import Layers, Run, Work
from benchmarks.gpu.timed import Call, Found, attempt, captured, copy_bandwidth, medians, timed
from benchmarks.page import table
from benchmarks.shapes import LARGE, SERIAL, Shape
from benchmarks.timing import compared, in_turn, random_tokens
from prefold.tree import TreeCache

SIZES = (128, 256, 512)
_ROUNDS, _REPEATS = 9, 10
_LOOSE = 2e-2  # of the largest value, in bfloat16: what a wrong mask exceeds many times
_EXPANDED = 8 << 30  # bytes of one layer's expanded keys and values, at most
_WORKS = [Work((1, branches), (prompt, 200)) for prompt in (1000, 4000, 16000) for branches in (1, 4, 16, 64)]
_WORKS += [Work(tuple(nodes), tuple(tokens)) for nodes, tokens in FORESTS]
_QUICK = [Work((1, 4), (300, 20), heads=4, kv_heads=2, head_dim=16)]
_TURNS = ((4000, 16), (4000, 64), (16000, 16))


def _every(run: Run, layers: int) -> Call:
    return lambda: [run(layer) for layer in range(layers)]


def _checked(layers: Layers, expected: torch.Tensor | None, make: Callable[[], Run], device: str) -> Call:
    """Return all layers' calls in one graph, once the first one's result is right.

    Raises:
        ValueError: it is wrong.
    """
    run = make()
    if expected is not None and (apart := float((run(0) - expected).abs().max() / expected.abs().max())) > _LOOSE:
        raise ValueError(f"wrong by {apart:.1e} of the largest value")
    return captured(_every(run, layers.count), device)


def _candidates(layers: Layers, device: str) -> dict[str, Call | str]:
    """Return what is timed, by name: the kernels by blocks of several sizes, and each branch by itself."""
    made: dict[str, Call | str] = {}
    expected = None
    if layers.work.expanded_bytes <= _EXPANDED:
        by_branch = layers.by_branch()
        expected = by_branch(0)
        made["each branch"] = attempt(lambda: captured(_every(by_branch, layers.count), device))
    for size in SIZES:
        make = partial(_checked, layers, expected, partial(layers.by_triton, size), device)
        made[f"blocks of {size}"] = attempt(make)
    return made


def _built(layers: Layers) -> float:
    """Return the seconds that a step takes to build the tree's metadata and bring it to the device."""
    found = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        layers.blocks().slots.sum().item()
        found.append(time.perf_counter() - start)
    return median(found)


@torch.no_grad()
def _attention(work: Work, bandwidth: float, cache: int, device: str, *, quick: bool) -> dict[str, Any]:
    layers = Layers(work, work.layers(cache), device, torch.float32 if device == "cpu" else torch.bfloat16)
    times, failed = timed(_candidates(layers, device), device, quick=quick, repeats=_REPEATS)
    return {
        "kind": "attention",
        "work": work.name,
        "physical_bytes": work.physical_bytes,
        "expanded_bytes": work.expanded_bytes,
        "bandwidth": bandwidth,
        "ideal": work.physical_bytes / bandwidth,
        "seconds": {name: each / layers.count for name, each in medians(times).items()},
        "failed": failed,
        "metadata": _built(layers),
    }


class _Turn:
    """A model that goes on from a prompt with many branches, one token each at a time."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, cache: TreeCache | DynamicCache, prompt: int, branches: int) -> None:
        self._how = "prefold_tree" if isinstance(cache, TreeCache) else "sdpa"
        self._model, self._cache = model, cache
        model.set_attn_implementation(self._how)
        ids = random_tokens(model.config.vocab_size, 1, prompt).to(model.device)
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits
        cache.batch_repeat_interleave(branches)
        self._token = logits[:, -1].topk(branches).indices.view(branches, 1)

    @torch.no_grad()
    def seconds(self) -> float:
        """Return the seconds of a greedy step."""
        self._model.set_attn_implementation(self._how)
        start = time.perf_counter()
        self._token = self._model(self._token, past_key_values=self._cache).logits[:, -1:].argmax(-1)
        self._token.tolist()
        return time.perf_counter() - start


def _model(shape: Shape, device: str) -> PreTrainedModel:
    config = AutoConfig.for_model(shape.model_type, **shape.settings | {"max_position_embeddings": 1 << 15})
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=shape.dtype)
    return made.to(device).eval()


def _end_to_end(model: PreTrainedModel, prompt: int, branches: int, rounds: int) -> dict[str, Any]:
    turns = {"expanded": DynamicCache(config=model.config), "tree": TreeCache()}
    steps = {name: _Turn(model, cache, prompt, branches).seconds for name, cache in turns.items()}
    times = in_turn(steps, rounds)
    return {
        "kind": "end to end",
        "work": f"{prompt:,}, {branches}",
        "seconds": {name: median(each) for name, each in times.items()},
        "ratio": compared(times["expanded"], times["tree"]),
    }


def measure(device: str, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the figures of each forest, and then of decoding with a model."""
    cache = 1 if device == "cpu" else torch.cuda.get_device_properties(0).L2_cache_size
    bandwidth = copy_bandwidth(device, 1 << 20) if quick else copy_bandwidth(device)
    for work in _QUICK if quick else _WORKS:
        yield _attention(work, bandwidth, cache, device, quick=quick)
    model = _model(SERIAL.changed("small", num_hidden_layers=2, vocab_size=512) if quick else LARGE, device)
    for prompt, branches in [(64, 4)] if quick else _TURNS:
        yield _end_to_end(model, prompt, branches, 2 if quick else _ROUNDS)


def render(found: Found) -> str:
    """Write the figures."""
    figures = found["tree"]
    attention, turns = ([each for each in figures if each["kind"] == kind] for kind in ("attention", "end to end"))
    parts = []
    if attention:
        names = [*(f"blocks of {size}" for size in SIZES), "each branch"]
        head = ["nodes x tokens of each level", "MB", "ideal us", *names, "metadata us"]
        parts.append(
            "A decode step's attention in one layer of Llama 3 8B's shape, bfloat16, in CUDA graphs: microseconds, and"
            " what they are of the time that keys and values take at the bandwidth of a copy,"
            f" {attention[0]['bandwidth'] / 1e12:.2f} TB/s, when each is read once."
        )
        parts.append(table(head, [_row(each, names) for each in attention]))
    if turns:
        cells = [
            [each["work"], *(f"{each['seconds'][name] * 1e3:.2f}" for name in ("expanded", "tree")),
             f"{each['ratio']['ratio']:.2f}"]
            for each in turns
        ]  # fmt: skip
        parts.append(f"A step of {LARGE.name} in transformers, eager, with its own expanded cache and with TreeCache.")
        parts.append(table(["prompt, branches", "expanded, ms", "tree, ms", "ratio"], cells))
    why = sorted({f"- {each['work']}, {name}: {text}" for each in attention for name, text in each["failed"].items()})
    return "\n\n".join([*parts, *(["\n".join(why)] if why else [])])


def _row(found: dict[str, Any], names: list[str]) -> list[str]:
    times = [found["seconds"].get(name) for name in names]
    cells = ["" if each is None else f"{each * 1e6:.1f} ({each / found['ideal']:.2f}x)" for each in times]
    return [
        found["work"], f"{found['physical_bytes'] / 1e6:,.1f}", f"{found['ideal'] * 1e6:.1f}", *cells,
        f"{found['metadata'] * 1e6:,.0f}",
    ]  # fmt: skip
