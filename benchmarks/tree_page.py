"""The page of what was measured of attention over a tree."""

from typing import Any

from page import table

_NOTES = """## Attention over a tree

In float32, in the shape of Pythia-410M ({heads} heads of {width} values; random weights and keys), after a prompt of
{prompt:,} tokens that all branches share and 32 tokens of each branch's own. Everything is measured in turn in one
process; figures are medians over the rounds, ratios medians of the rounds' ratios, and above 1 the tree is faster.
[Trees](tree.md#measured-beside-others) has the same beside vLLM.

- **tree**: `attn_implementation="prefold_tree"` with a `TreeCache`. **expanded**: what transformers' own `generate`
  does: its cache holds every branch's whole path and grows by concatenation. **sequence-wise**: torch's attention
  alone, each branch reading its whole path from tensors that lie ready. **flex**: compiled FlexAttention over the
  flattened tree with a tree mask, keys and mask ready.
- **read**: bytes of keys and values that were handed to the attention kernels in one step, counted as they are handed
  over. **physical**: the formula's column, every live segment once. They are equal or the benchmark fails.
- **metadata**: what making the tree's groups takes, as a part of the step.
- **held**: bytes of keys and values in memory. The sharing factor is the ratio of tokens on all paths to tokens in the
  tree.
"""


def render(figures: list[dict[str, Any]], *, heads: int, width: int, prompt: int) -> str:
    """Write all tables, and what they are of."""
    notes = _NOTES.format(heads=heads, width=width, prompt=prompt)
    parts = [_attention_table, _decoding_table, _template_table, _kernel_table]
    made = [part(figures) for part in parts]
    return "\n\n".join([notes.rstrip(), *(each for each in made if each.count("\n") > 1)])  # not a head alone


def _of(figures: list[dict[str, Any]], *cases: str) -> list[dict[str, Any]]:
    return [each for each in figures if each["case"] in cases]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.2f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _attention_table(figures: list[dict[str, Any]]) -> str:
    head = ["attention, one layer and step", "branches", "tree ms", "expanded ms", "sequence-wise ms", "flex ms"]
    rows = []
    for each in _of(figures, "attention", "beams"):
        seconds, ratios = each["seconds"], each.get("ratios", {"expanded": each.get("ratio")})
        names = ("expanded", "sequence", "flex")
        what = "beams" if each["case"] == "beams" else "samples"
        rows.append(
            [f"{what} of {each['prompt']:,} tokens", str(each["branches"]), _milliseconds(seconds["tree"])]
            + [_milliseconds(seconds.get(name)) for name in names]
            + [_times(ratios.get(name)) for name in names]
        )
    return table([*head, "expanded / tree", "sequence-wise / tree", "flex / tree"], rows)


def _decoding_table(figures: list[dict[str, Any]]) -> str:
    head = ["a step of the model", "layers", "tree ms", "expanded ms", "ratio", "middle half", "metadata", "read MB"]
    rows = [
        [
            f"{each['branches']} branches",
            str(each["layers"]),
            _milliseconds(each["tree"]),
            _milliseconds(each["expanded"]),
            _times(each["ratio"]),
            f"{each['low']:.2f} to {each['high']:.2f}",
            f"{each['metadata']:.2%}",
            f"{each['read'] / 1e6:,.1f}",
            f"{each['physical'] / 1e6:,.1f}",
            f"{each['held'] / 1e6:,.0f}",
            f"{each['held_expanded'] / 1e6:,.0f}",
            f"{each['held_expanded'] / each['held']:.2f}",
            f"{each['sharing']:.2f}",
            f"{each['difference']:.0e}",
        ]
        for each in _of(figures, "decoding")
    ]
    tail = ["physical MB", "held MB", "expanded held MB", "held ratio", "sharing factor", "logits apart"]
    return table([*head, *tail], rows)


def _template_table(figures: list[dict[str, Any]]) -> str:
    head = ["template, one layer, whole tree", "steps", "read = physical GB", "tree ms", "sequence-wise ms", "ratio"]
    rows = [
        [
            each["template"],
            f"{each['steps']:,}",
            f"{each['read'] / 1e9:,.3f}",
            _milliseconds(each["tree"]),
            _milliseconds(each["sequence"]),
            _times(each["ratio"]),
        ]
        for each in _of(figures, "template")
    ]
    return table(head, rows)


def _kernel_table(figures: list[dict[str, Any]]) -> str:
    head = ["one segment, one layer", "queries of a head", "flash ms", "products ms"]
    rows = [
        [
            f"{each['heads']} heads of {each['width']}, {each['tokens']:,} tokens",
            str(each["queries"]),
            _milliseconds(each["flash"]),
            _milliseconds(each["products"]),
        ]
        for each in _of(figures, "kernels")
    ]
    return table(head, rows)
