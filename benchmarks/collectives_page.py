"""What ``docs/plan-validation.md`` says of collectives."""

from collections.abc import Sequence
from typing import Any

from benchmarks.page import table

Row = dict[str, Any]
_METHOD = """
Eight processes on one machine talk over gloo. E = 48, F = 80, 8 heads of 8, 40 tokens; weights in bf16, and what is
sent for activations in fp32. Bytes are those of one chip, counted / by the plan, with (K-1)/K; all processes have to
send the same. A collective over several axes may go axis by axis, and may be one for each matrix: the bytes are the
same. CommDebugMode has to see as many collectives as were counted.

- DTensor redistributes the residual, the products and, in the layouts that gather them over x or xy, the weights;
  `fully_shard` gathers weights over all chips, from shards of its own. The reduce-scatter over y and z is asked of
  DTensor axis by axis: asked for both at once, it may start with an all-reduce, which sends more.
- DTensor cannot express the all-to-all on gloo: where another dimension is to be split, it gathers everything there and
  cuts. It is the functional collective `all_to_all_single`. Attention itself sends nothing: a chip takes its shard.
- Not run: experts, compressed attention, attention to an encoder's output, heads of keys and values between 1 and all.
"""
_REASONS = {
    "norm": "Norms. Where a chip has a part of E (2D), each norm sends one sum of squares for a token, as an "
    "all-reduce over x. The plan leaves norms out: it is one number beside the thousands of the residual.",
    "unknown": "Others, for which there is no reason here.",
}


def render(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown: how many are equal, which are not and why, and all of them."""
    within = [row for row in rows if row["formula"]]
    equal, beyond = sum(row["equal"] for row in within), len(rows) - len(within)
    error = max(row["error"] for row in rows)
    summary = (
        f"**{equal} of {len(within)} parts that the plan counts send what it says, to the byte; {beyond} parts that it "
        f"does not count send something, too.** What blocks return is within {error:.0e} of the same block on one "
        "chip, whose values are near 1."
    )
    reasons = [text for part, text in _REASONS.items() if any(_reason(row) == part for row in rows)]
    unequal = ["What is not equal, and why:\n\n" + "\n".join(f"- {text}" for text in reasons)] if reasons else []
    return "\n\n".join((summary, _METHOD.strip(), *unequal, _table(rows)))


def _reason(row: Row) -> str | None:
    if row["equal"]:
        return None
    return "norm" if row["part"] == "norm" else "unknown"


def _table(rows: Sequence[Row]) -> str:
    """Return one line for source and folded of the same part."""
    lines: dict[tuple[str, ...], dict[bool, Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "mesh", "layout", "attention", "part"))
        lines.setdefault(key, {})[row["folded"]] = row
    header = ["block", "mesh", "layout", "attention over", "part", "source", "folded", "equal", "error", "by", "sent"]
    return table(header, [_line(key, found) for key, found in lines.items()])


def _line(key: tuple[str, ...], found: dict[bool, Row]) -> list[str]:
    first = next(iter(found.values()))
    sent = ", ".join(f"{count} {kind}" for kind, count in first["collectives"].items()) or "nothing"
    equal = "yes" if all(row["equal"] for row in found.values()) else "**no**"
    error = f"{max(row['error'] for row in found.values()):.0e}"
    return [*key, *(_cell(found.get(folded)) for folded in (False, True)), equal, error, first["how"], sent]


def _cell(row: Row | None) -> str:
    return f"{row['counted']:,.0f} / {row['formula']:,.0f}" if row else "-"
