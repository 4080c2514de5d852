"""Samples of one prompt, by vLLM, transformers and prefold: ``.venv-vllm/bin/python -m benchmarks.tree_peers``.

All are measured in turn in one run, with the same weights. Writes its section of ``docs/tree.md``; with ``--quick`` it
measures a small model and prints.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.engine import set_environment
from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.shapes import SERIAL, Shape, save
from benchmarks.timing import compared, in_turn, random_tokens, seconds_of
from benchmarks.tree_case import repeated
from prefold.tree import attend_by, prefill
from prefold.tree.prompts.sampling import _Clock

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "tree.md"
_LONGEST, _NEW = 4160, 16
_SHAPE = SERIAL.changed("A Llama of 0.35 B", max_position_embeddings=_LONGEST)
_SMALL = _SHAPE.changed("small", num_hidden_layers=2)
_CASES = ((64, 16), (4000, 16), (4000, 64))
_TREE = "prefold"
# Continuous batching on a CPU attends to all samples' tokens by one dense mask: minutes for a step of 64,000 tokens.
_MOST_BATCHED = 1 << 11
_ROOM = 1 << 32  # bytes that an expanded cache may take
_SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0}
# Seconds to the first token of every sample, and of each step behind it, of a prompt and a number of samples.
Sampler = Callable[[torch.Tensor, int], tuple[float, float]]


def _transformers(model: Any, cache: Callable[[torch.Tensor, int], Any], attention: str) -> Sampler:
    @torch.inference_mode()
    def sample(ids: torch.Tensor, samples: int) -> tuple[float, float]:
        attend_by(model, attention)
        clock, start = _Clock(), perf_counter()
        wanted = {"num_return_sequences": samples, "max_new_tokens": _NEW + 1, "min_new_tokens": _NEW + 1} | _SAMPLING
        model.generate(ids, past_key_values=cache(ids, samples), logits_processor=[clock], **wanted)
        first, *_, last = clock.ticks
        return first - start, (last - first) / _NEW

    return sample


def _continuous(model: Any) -> Sampler:
    def sample(ids: torch.Tensor, samples: int) -> tuple[float, float]:
        attend_by(model, "sdpa")
        room = ContinuousBatchingConfig(num_blocks=2 * samples + ids.shape[1] // 256 + 1, max_batch_tokens=_LONGEST)

        def generate(new: int) -> None:
            wanted = GenerationConfig(num_return_sequences=samples, max_new_tokens=new, eos_token_id=-1, **_SAMPLING)
            model.generate_batch(ids.tolist(), wanted, room, warmup=False)

        first, whole = (seconds_of(partial(generate, new)) for new in (1, _NEW + 1))
        return first, (whole - first) / _NEW

    return sample


def _vllm(folder: Path, kind: torch.dtype) -> Sampler:
    from vllm import LLM, SamplingParams

    options = {
        "skip_tokenizer_init": True,
        "max_model_len": _LONGEST,
        "max_num_batched_tokens": _LONGEST,
        "dtype": kind,
    }
    engine = LLM(str(folder), max_num_seqs=max(samples for _, samples in _CASES), **options)

    def sample(ids: torch.Tensor, samples: int) -> tuple[float, float]:
        def generate(new: int) -> None:
            wanted = SamplingParams(n=samples, max_tokens=new, ignore_eos=True, detokenize=False)
            engine.generate([{"prompt_token_ids": ids[0].tolist()}], wanted, use_tqdm=False)

        engine.reset_prefix_cache()  # else the prompt of a round would be read once in all of its runs
        first, cached, whole = (seconds_of(partial(generate, new)) for new in (1, 1, _NEW + 1))
        return first, (whole - cached) / _NEW

    return sample


def _samplers(shape: Shape, folder: Path) -> dict[str, Sampler]:
    model = AutoModelForCausalLM.from_pretrained(save(shape, folder), dtype=shape.dtype).eval()
    return {
        "vLLM": _vllm(folder / "source", shape.dtype),
        "continuous": _continuous(model),
        "expanded": _transformers(model, partial(repeated, model), "sdpa"),
        _TREE: _transformers(model, lambda ids, samples: prefill(model, ids, branches=samples), "prefold_tree"),
    }


def _fits(name: str, shape: Shape, prompt: int, samples: int) -> bool:
    settings = shape.settings
    width = settings["hidden_size"] // settings["num_attention_heads"] * settings["num_key_value_heads"]
    held = 2 * width * settings["num_hidden_layers"] * shape.dtype.itemsize * (prompt + _NEW) * samples
    return not (name == "expanded" and held > _ROOM) and not (name == "continuous" and prompt * samples > _MOST_BATCHED)


def _measure(shape: Shape, cases: tuple[tuple[int, int], ...], rounds: int) -> list[dict[str, Any]]:
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        samplers, found = _samplers(shape, Path(folder)), []
        for prompt, samples in cases:
            fitting = {name: each for name, each in samplers.items() if _fits(name, shape, prompt, samples)}
            found.append({"prompt": prompt, "samples": samples} | _case(fitting, prompt, samples, rounds))
            sys.stderr.write(f"{found[-1]}\n")
    return found


def _case(samplers: dict[str, Sampler], prompt: int, samples: int, rounds: int) -> dict[str, Any]:
    """Return seconds to the first token and of each step behind it, for every sampler and round."""
    ids = random_tokens(SERIAL.settings["vocab_size"], 1, prompt)
    taken = in_turn({name: lambda each=each: each(ids, samples) for name, each in samplers.items()}, rounds)
    return {
        "first": {name: [first for first, _ in each] for name, each in taken.items()},
        "step": {name: [step for _, step in each] for name, each in taken.items()},
    }


def _cells(found: dict[str, list[float]], scale: float, digits: int) -> list[str]:
    """Return each sampler's median, and how many times the tree's it is."""
    cells = []
    for name in ("vLLM", "continuous", "expanded"):
        ratio = f" ({compared(found[name], found[_TREE])['ratio']:.2f})" if name in found else ""
        cells.append(f"{median(found[name]) * scale:,.{digits}f}{ratio}" if name in found else "-")
    return [*cells, f"{median(found[_TREE]) * scale:,.{digits}f}"]


def _render(figures: list[dict[str, Any]], shape: Shape, rounds: int) -> str:
    import vllm

    head = ["prompt", "samples", "vLLM", "continuous", "expanded", _TREE]
    rows = {
        what: [[f"{each['prompt']:,}", str(each["samples"]), *_cells(each[what], *how)] for each in figures]
        for what, how in (("step", (1e3, 0)), ("first", (1, 2)))
    }
    kind = str(shape.dtype).removeprefix("torch.")
    facts = {"shape": shape.name, "kind": kind, "vllm": vllm.__version__, "rounds": rounds}
    text = _TEXT.format(**facts, setting=os.environ.get("MKL_CBWR", "not set"))
    tables = f"{table(['ms a step: ' + head[0], *head[1:]], rows['step'])}\n\n"
    return (
        text
        + tables
        + f"{table(['s to first tokens: ' + head[0], *head[1:]], rows['first'])}\n\n"
        + sentence(describe())
    )


_TEXT = """### Beside vLLM and transformers

Written by `python -m benchmarks.tree_peers`. {shape} with random weights in {kind}; samples of one prompt by

- **vLLM** {vllm}, compiled and with prefix caching;
- **continuous**: transformers' continuous batching, whose blocks a prompt's samples share;
- **expanded**: transformers' `generate` with a cache that is computed once and repeated for every sample;
- **{tree}**: `generate` with a `TreeCache`.

In turn, {rounds} rounds, medians; a step is one token of every sample. In brackets: how many times {tree}'s, above 1
where {tree} is faster. `MKL_CBWR`: {setting}. A dash: an expanded cache above 4 GB, or a step of minutes, since
continuous batching on a CPU attends to every sample's tokens by one dense mask.

""".replace("{tree}", _TREE)


def main() -> None:
    """Measure, and write the section, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds, shown and not written")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="of the weights")
    asked = parser.parse_args()
    set_environment()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
    shape = (_SMALL if asked.quick else _SHAPE).of(getattr(torch, asked.dtype))
    cases, rounds = (((64, 4),), 2) if asked.quick else (_CASES, asked.rounds)
    text = _render(_measure(shape, cases, rounds), shape, rounds)
    show_or_write("tree-peers", text, _PAGE, show=asked.quick)


if __name__ == "__main__":
    main()
