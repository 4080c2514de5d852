"""The page that tells what folds."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.page import table

_HEAD = """# What folds

Written by `python -m benchmarks.coverage`; all figures are in `coverage.json` beside it.
For every type in transformers' mappings of causal, masked and sequence-to-sequence language models (those that read
sounds included), a small model with random weights in fp32 is built, saved, converted, and loaded beside its source as
a user loads both. Compared are every row of the table with the source's first layer, and the logits of:

- causal: a pass over the whole vocabulary, a prefill, 48 random texts, a cached continuation, a left-padded batch
- masked: a pass over the whole vocabulary, a batch, 48 random texts, a right-padded batch
- sequence-to-sequence: a pass of the whole vocabulary through both sides, a batch, 48 random texts, a batch that is
  padded on either side, a cached continuation

and, where a model takes them, of token types other than the first and of positions that do not start at 0. A
continuation is made of given tokens. A model of the last mapping that has no decoder of its own is compared as a causal
one.

*exact*: no bit of the rows and of the pass over the vocabulary differs. In the other passes a matrix product may sum in
another order than when the table was made, because it has fewer rows: the largest difference there is shown as a share
of the largest logit. *as accurate*: not equal, but its mean squared error against the source in fp64, over all checks,
is not above 1.05 times the source's own; the last column is that ratio. *close*: worse than that, and within 1e-5.
Whatever differs by more than 1e-5 is called wrong. A wrong type is one that discovery lets through: `prefold convert`
refuses it when it verifies (exit code 5), a conversion without verification does not.

`--text-only`: the class takes images or sounds, too, and is folded for token ids alone; without that option it is
refused.

The share of the weights that the table replaces is that of the small model, whose sizes are nobody's: `prefold inspect`
tells it of a real one.
"""
# Written by hand, from what tests/convert/test_quantized.py saw.
_QUANTIZED = Path(__file__).with_name("quantized.md")
_TITLES = {"causal": "Causal", "masked": "Masked", "seq2seq": "Sequence-to-sequence"}
_KINDS = ("exact", "as accurate", "close", "wrong", "refused", "crashed")


def page(results: list[dict[str, Any]]) -> str:
    """Write results as Markdown."""
    by_task = {task: [result for result in results if result["task"] == task] for task in _TITLES}
    parts = [_HEAD, _totals(by_task), *(part for task, some in by_task.items() if some for part in _task(task, some))]
    return "\n\n".join(part.strip("\n") for part in [*parts, _QUANTIZED.read_text(), *_notes(results)]) + "\n"


def _task(task: str, results: list[dict[str, Any]]) -> list[str]:
    """Write the table of a task."""
    head = ("type", "result", "columns", "weights eliminated", "largest difference", "error by the source's")
    return [f"## {_TITLES[task]}", table(head, map(_row, results))]


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    kind, names = result["result"], ", ".join(f"`{name}`" for name in result["columns"])
    kind += " (`--text-only`)" if result["refused_inputs"] else ""
    outcome = f"{kind}: {_escaped(result['reason'])}" if result["reason"] else kind
    worst = f"{max(result['differences'].values()):.1e}" if result["differences"] else ""
    share = _percent(result["eliminated"]) if names else ""
    ratio = "" if result["error_ratio"] is None else f"{result['error_ratio']:.3g}"
    return f"`{result['model_type']}`", outcome, names, share, worst, ratio


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _escaped(text: str) -> str:
    for sign in "|<[":
        text = text.replace(sign, f"\\{sign}")
    return text


def _totals(by_task: dict[str, list[dict[str, Any]]]) -> str:
    head = ("task", "types", "built", "goal: folded of built", *_KINDS)
    return table(head, [(task, *_counts(results)) for task, results in by_task.items() if results])


def _counts(results: list[dict[str, Any]]) -> tuple[str, ...]:
    """Count results; folded is what is equal, or as near as can be: what is wrong is not."""
    counts = Counter(result["result"] for result in results)
    built = len(results) - counts["not built"]
    folded = counts["exact"] + counts["as accurate"] + counts["close"]
    goal = f"{folded} of {built}, {_percent(folded / built)}" if built else ""
    return str(len(results)), str(built), goal, *(str(counts[kind]) for kind in _KINDS)


def _notes(results: list[dict[str, Any]]) -> list[str]:
    """Tell of the checks that a source itself does not get through."""
    lines = [
        f"- {result['task']} `{result['model_type']}`, {name}: {_escaped(why)}"
        for result in results
        for name, why in result["skipped"].items()
    ]
    return ["## Not compared", "Because the source itself cannot do it:", "\n".join(lines)] if lines else []
