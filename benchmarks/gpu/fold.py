"""Part 2: decoding with a folded model and with its source, and what a first layer says alone and in a batch."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, StaticCache

from benchmarks.gpu.timed import Call, Found, attempt, captured, medians, timed
from benchmarks.page import table
from benchmarks.shapes import LARGE, PHI_1_5, PYTHIA_70M, PYTHIA_410M, Shape, save
from benchmarks.timing import compared, load, random_tokens
from prefold.convert import FoldOptions, convert_checkpoint
from prefold.convert.checkpoint.source import open_folder
from prefold.convert.fold.reads import count_reads
from prefold.convert.prepare import prepare_source

SHAPES = (PYTHIA_70M, PYTHIA_410M, PHI_1_5, LARGE)
BATCHES = (1, 8, 64)
PROMPT = 32
_QUICK = PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=512)


class Step:
    """One decode step behind a prompt, which can be repeated: it goes back to where it began."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, batch: int) -> None:
        self._model, self._cache = model, StaticCache(config=model.config, max_cache_len=2 * PROMPT)
        prompt = random_tokens(model.config.vocab_size, batch, PROMPT).to(model.device)
        self._token = model(prompt, past_key_values=self._cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        self.logits = torch.empty(0)

    @torch.no_grad()
    def __call__(self) -> None:
        """Take the step, and go back."""
        self.logits = self._model(self._token, past_key_values=self._cache).logits
        for layer in self._cache.layers:
            layer.cumulative_length.sub_(1)  # type: ignore[attr-defined]


def _steps(models: dict[str, PreTrainedModel], batch: int, device: str) -> dict[str, Call | str]:
    """Return steps of both models, eager and in a graph, or the reasons why they are not there."""
    made: dict[str, Call | str] = {}
    for name, model in models.items():
        eager = made[f"{name}, eager"] = attempt(partial(Step, model, batch))
        if not isinstance(eager, str):
            made[f"{name}, graph"] = attempt(partial(captured, eager, device))
    return made


def _timed(models: dict[str, PreTrainedModel], batch: int, device: str, *, quick: bool) -> dict[str, Any]:
    times, failed = timed(_steps(models, batch, device), device, quick=quick)
    ratios = {}
    for how in ("eager", "graph"):
        pair = [times.get(f"{name}, {how}") for name in models]
        if pair[0] and pair[1]:
            ratios[how] = compared(pair[0], pair[1])
    return {"seconds": medians(times), "ratios": ratios, "failed": failed}


@torch.no_grad()
def _alone_and_in_a_batch(model: PreTrainedModel, modules: list[str], batch: int) -> dict[str, bool]:
    """Return whether each module's row of a token is the same, bit by bit, alone and in a batch."""
    said: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, to=said[name]: to.append(out.detach()))
        for name in modules
    ]
    ids = random_tokens(model.config.vocab_size, batch, 1).to(model.device)
    for part in (ids, ids[:1]):
        model(part, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: bool(torch.equal(whole[:1], alone)) for name, (whole, alone) in said.items()}


def _invariance(models: dict[str, PreTrainedModel], modules: list[str], batch: int) -> dict[str, str]:
    found = {name: _alone_and_in_a_batch(model, modules, batch) for name, model in models.items()}
    return {name: f"{sum(each.values())} of {len(each)}" for name, each in found.items()}


def _measure(shape: Shape, batches: tuple[int, ...], device: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory(prefix="prefold-bench-") as scratch:
        source = save(shape, Path(scratch), device)
        out = convert_checkpoint(str(source), Path(scratch) / "folded", options=FoldOptions(device=device)).out
        study = prepare_source(open_folder(source)).study
        modules = [column.module for cut in study.cuts for column in cut.columns]
        models = {"source": load(source, device_map=device), "folded": load(out, device_map=device)}
        for batch in batches:
            figures = {"shape": shape.name, "batch": batch} | _timed(models, batch, device, quick=quick)
            reads = count_reads(study.census, batch)
            values = {"before": reads.model_before, "after": reads.model_after}
            yield figures | {"reads": values, "same_row": _invariance(models, modules, batch)}


def measure(device: str, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the figures of each shape and batch."""
    for shape in (_QUICK,) if quick else SHAPES:
        yield from _measure(shape, BATCHES[:2] if quick else BATCHES, device, quick=quick)


def render(found: Found) -> str:
    """Write the figures."""
    figures = found["fold"]
    head = ["bfloat16", "batch", "source, eager, ms", "folded", "ratio", "source, graph, ms", "folded", "ratio"]
    head += ["middle half", "ratio of bytes", "rows that are the same alone: source", "folded"]
    why = sorted({f"- {name}: {text}" for each in figures for name, text in each["failed"].items()})
    text = (
        f"A step behind a prompt of {PROMPT} tokens, in turn; medians. The ratio is source to folded: above 1, the"
        " folded model is faster. The last columns count folded modules whose row of a token has the same bits alone"
        " and in the batch: a look-up returns the same row in both."
    )
    return "\n\n".join([text, table(head, [_row(each) for each in figures]), *(["\n".join(why)] if why else [])])


def _row(each: dict[str, Any]) -> list[str]:
    cells = [each["shape"], f"{each['batch']}"]
    for how in ("eager", "graph"):
        times = [each["seconds"].get(f"{name}, {how}") for name in ("source", "folded")]
        ratio = each["ratios"].get(how)
        cells += [f"{time * 1e3:.3f}" if time else "" for time in times] + [f"{ratio['ratio']:.3f}" if ratio else ""]
    half = each["ratios"].get("graph")
    cells += [f"{half['low']:.3f} to {half['high']:.3f}" if half else ""]
    same = each["same_row"]
    return [*cells, f"{each['reads']['before'] / each['reads']['after']:.3f}", same["source"], same["folded"]]
