"""Prompts read with their common beginnings once, and padded: ``python -m benchmarks.tree_prefill [--quick]``.

Writes its section of ``docs/tree.md``; with ``--quick`` it measures short prompts and prints.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.shapes import SERIAL
from benchmarks.timing import compared, in_turn, random_tokens, seconds_of
from prefold.tree import attend_by, prefill
from prefold.tree.prompts.prefixes import _padded

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "tree.md"
_LAYERS, _ROUNDS = 4, 3
# Tokens that prompts have in common, and those of each prompt behind them.
_CASES: dict[str, list[tuple[int, list[int]]]] = {
    "one prompt": [(0, [1024])],
    "8 prompts, equally long, nothing in common": [(0, [256])] * 8,
    "8 prompts of 40 to 320 tokens, nothing in common": [(0, [40 * each]) for each in range(1, 9)],
    "8 questions about one document": [(512, [64] * 8)],
    "4 questions about each of two documents": [(400, [30, 60, 90, 120]), (300, [30, 60, 90, 120])],
}


def _prompts(case: list[tuple[int, list[int]]], scale: int) -> list[list[int]]:
    made = []
    for shared, lengths in case:
        common = _tokens(shared // scale, len(made))
        made += [common + _tokens(max(2, length // scale), len(made) + each) for each, length in enumerate(lengths)]
    return made


def _tokens(length: int, seed: int) -> list[int]:
    tokens: list[int] = random_tokens(SERIAL.settings["vocab_size"], 1, length, seed)[0].tolist()
    return tokens


def _timed(model: PreTrainedModel, attention: str, read: Callable[[], object]) -> Callable[[], float]:
    @torch.inference_mode()
    def call() -> float:
        attend_by(model, attention)
        return seconds_of(read)

    return call


def _measure(model: PreTrainedModel, name: str, scale: int) -> list[str]:
    ids, mask = _padded(model, _prompts(_CASES[name], scale), {})
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    own = {"attention_mask": mask, "position_ids": positions, "use_cache": True, "logits_to_keep": 1}
    attend_by(model, "prefold_tree")
    stored = prefill(model, ids, mask).memory().tokens
    taken = in_turn(
        {
            "padded": _timed(model, "sdpa", lambda: model(ids, past_key_values=DynamicCache(), **own)),
            "tree": _timed(model, "prefold_tree", lambda: prefill(model, ids, mask)),
        },
        _ROUNDS,
    )
    ratio = compared(taken["padded"], taken["tree"])
    times = [f"{median(taken[kind]) * 1e3:,.0f}" for kind in ("padded", "tree")]
    tokens = [f"{int(mask.sum()):,}", f"{stored:,}"]
    return [name, *tokens, *times, f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"]


_TEXT = """### Prefill of several prompts

Written by `python -m benchmarks.tree_prefill`. Milliseconds in which {layers} layers of the model above read prompts in
float32: **padded** is a pass of transformers' own over the batch, padded at the left, with sdpa; **tree** is `prefill`,
which leaves the last token of each prompt to `generate`. In turn, {rounds} rounds, medians; above 1 the tree is faster.

"""


def main() -> None:
    """Measure, and write the section, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short prompts, shown and not written")
    asked = parser.parse_args()
    config = AutoConfig.for_model("llama", **SERIAL.settings | {"num_hidden_layers": _LAYERS})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows = [_measure(model, name, 32 if asked.quick else 1) for name in _CASES]
    head = ["prompts", "tokens", "tokens in the tree", "padded", "tree", "ratio (middle half)"]
    text = _TEXT.format(layers=_LAYERS, rounds=_ROUNDS) + table(head, rows) + "\n\n" + sentence(describe())
    show_or_write("tree-prefill", text, _PAGE, show=asked.quick)


if __name__ == "__main__":
    main()
