"""Where a step of several samples spends its time: ``python -m benchmarks.tree_step [--quick]``.

Each setting is a process of its own, since MKL reads ``MKL_CBWR`` when it is loaded. Writes its section of
``docs/tree.md``; with ``--quick`` it measures a small model and prints.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.shapes import SERIAL
from benchmarks.timing import in_turn, random_tokens
from benchmarks.tree_case import repeated
from prefold.tree import prefill
from prefold.tree.cache import masks
from prefold.tree.cache.attention import tree_attention

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "tree.md"
_PROMPT, _STEPS, _ROUNDS = 64, 16, 3
_SETTINGS = ("", "AVX2")  # of MKL_CBWR
_PARTS = ("products", "attention", "rest of the model", "generate")


class _Spent:
    """Seconds inside of functions and modules, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._starts: dict[Any, float] = {}

    def function(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            found = call(*args, **kwargs)
            self.seconds[name] += perf_counter() - start
            return found

        return timed

    def module(self, name: str, module: torch.nn.Module) -> None:
        """Time every pass of a module."""
        module.register_forward_pre_hook(lambda *_: self._starts.update({module: perf_counter()}))
        module.register_forward_hook(lambda *_: self._add(name, perf_counter() - self._starts[module]))

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds


class _Model:
    """A model whose products and attention, and passes as a whole, are timed."""

    def __init__(self, layers: int) -> None:
        settings = SERIAL.settings | {"num_hidden_layers": layers}
        torch.manual_seed(0)
        self._model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32)
        self._model.eval()
        self._spent = _Spent()
        for each in self._model.modules():
            if isinstance(each, torch.nn.Linear):
                self._spent.module("products", each)
        self._spent.module("model", self._model)
        for name, attend, mask in (
            ("tree", tree_attention, masks.TreeMask),
            ("expanded", sdpa_attention_forward, sdpa_mask),
        ):
            AttentionInterface.register(name, self._spent.function("attention", attend))
            AttentionMaskInterface.register(name, mask)

    @torch.inference_mode()
    def steps(self, kind: str, samples: int) -> dict[str, float]:
        """Return the seconds of a step behind a prompt that has been read, by part."""
        ids = random_tokens(SERIAL.settings["vocab_size"], 1, _PROMPT)
        cache = self._read(kind, ids, samples)
        self._spent.seconds.clear()
        start = perf_counter()
        wanted = {"do_sample": True, "top_k": 0, "num_return_sequences": samples, "pad_token_id": 0}
        self._model.generate(ids, past_key_values=cache, max_new_tokens=_STEPS, min_new_tokens=_STEPS, **wanted)
        spent = self._spent.seconds | {"generate": perf_counter() - start - self._spent.seconds["model"]}
        spent["rest of the model"] = spent["model"] - spent["products"] - spent["attention"]
        return {name: spent[name] / _STEPS for name in _PARTS}

    def _read(self, kind: str, ids: torch.Tensor, samples: int) -> Any:
        self._model.set_attn_implementation(masks.NAME if kind == "tree" else "sdpa")
        cache = (prefill if kind == "tree" else repeated)(self._model, ids, branches=samples)
        self._model.set_attn_implementation(kind)
        return cache


def _measure(layers: int, samples: list[int]) -> list[dict[str, Any]]:
    """Return the medians of the parts of a step, for both caches in turn."""
    model, found = _Model(layers), []
    for count in samples:
        timed = {kind: partial(model.steps, kind, count) for kind in ("tree", "expanded")}
        for kind, taken in in_turn(timed, _ROUNDS).items():
            parts = {name: median(each[name] for each in taken) for name in _PARTS}
            found.append({"samples": count, "cache": kind, "parts": parts})
    return found


def _run(setting: str, layers: int, samples: list[int]) -> list[dict[str, Any]]:
    """Measure in a process with a setting of MKL's."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    asked = [sys.executable, "-m", "benchmarks.tree_step", "--child", str(layers), *map(str, samples)]
    ran = subprocess.run(
        asked, env=environment | ({"MKL_CBWR": setting} if setting else {}), stdout=subprocess.PIPE, check=True
    )
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


_TEXT = """### A step, by parts

Written by `python -m benchmarks.tree_step`. Milliseconds of a step in float32, of the model above, after a prompt of
{prompt} tokens, so that nothing is gained by sharing it: linear layers, attention (in which a `TreeCache` stores), all
else of the model, and `generate` around it, which samples from {vocabulary:,} logits for each row.

"""


def main() -> None:
    """Measure every setting, and write the section, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, shown and not written")
    parser.add_argument("--child", type=int, nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        sys.stdout.write(json.dumps(_measure(asked.child[0], asked.child[1:])))
        return
    layers, samples = (2, [2]) if asked.quick else (SERIAL.settings["num_hidden_layers"], [16, 64])
    rows = [
        [setting or "not set", str(each["samples"]), each["cache"], f"{sum(each['parts'].values()) * 1e3:,.0f}"]
        + [f"{each['parts'][name] * 1e3:,.1f}" for name in _PARTS]
        for setting in _SETTINGS
        for each in _run(setting, layers, samples)
    ]
    head = ["MKL_CBWR", "samples", "cache", "step", *_PARTS]
    text = _TEXT.format(prompt=_PROMPT, vocabulary=SERIAL.settings["vocab_size"])
    text += table(head, rows) + "\n\n" + sentence(describe())
    show_or_write("tree-step", text, _PAGE, show=asked.quick)


if __name__ == "__main__":
    main()
