"""The page that tells what folds."""

from collections import Counter
from typing import Any

from benchmarks.page import table

_HEAD = """# What folds

Written by `python -m benchmarks.coverage`; the figures are also in `coverage.json`. For every type in transformers'
mapping of causal language models, a small model with random weights in fp32 is built, saved, converted, and loaded
beside its source as a user loads both. Compared are every row of the table with the source's first layer, and the
logits of a pass over the whole vocabulary, of a prefill, of a cached continuation, and of a left-padded batch.

*exact*: no bit of the rows and of the pass over the vocabulary differs. In the other passes a matrix product may sum in
another order than when the table was made, because it has fewer rows: the largest difference there is shown as a share
of the largest logit. Whatever differs by more than 1e-5 is called wrong. A wrong type is one that discovery lets
through: `prefold convert` refuses it when it verifies (exit code 5), a conversion without verification does not.

The share of the weights that the table replaces is that of the small model, whose sizes are nobody's: `prefold inspect`
tells it of a real one.
"""


def page(results: list[dict[str, Any]]) -> str:
    """Write results as Markdown."""
    head = ("type", "result", "largest difference", "weights eliminated", "columns")
    parts = [_HEAD, _totals(results), table(head, map(_row, results)), *_notes(results)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    kind, names = result["result"], ", ".join(f"`{name}`" for name in result["columns"])
    outcome = f"{kind}: {_escaped(result['reason'])}" if result["reason"] else kind
    worst = f"{max(result['differences'].values()):.1e}" if result["differences"] else ""
    share = f"{result['eliminated']:.0%}".replace("%", " %") if names else ""
    return f"`{result['model_type']}`", outcome, worst, share, names


def _escaped(text: str) -> str:
    for sign in "|<[":
        text = text.replace(sign, f"\\{sign}")
    return text


def _totals(results: list[dict[str, Any]]) -> str:
    counts = Counter(result["result"] for result in results)
    built = len(results) - counts["not built"]
    folded = counts["exact"] + counts["close"] + counts["wrong"]
    figures = {
        "types": len(results),
        "built": built,
        "folded": folded,
        "exact": counts["exact"],
        "within rounding": counts["close"],
        "wrong": counts["wrong"],
        "refused": counts["refused"],
        "crashed": counts["crashed"],
    }
    return table(tuple(figures), [tuple(str(figure) for figure in figures.values())])


def _notes(results: list[dict[str, Any]]) -> list[str]:
    """Tell of the checks that a source itself does not get through."""
    lines = [
        f"- `{result['model_type']}`, {name}: {_escaped(why)}"
        for result in results
        for name, why in result["skipped"].items()
    ]
    return ["Not compared, because the source itself cannot do it:", "\n".join(lines)] if lines else []
