"""The tables of a tree: bytes by scheme."""

from dataclasses import asdict
from fractions import Fraction
from typing import Any

from rich.table import Table

from prefold.cli.show.show import out, say
from prefold.common.units import spell_bytes
from prefold.tree import Attention, Counted, Forest, Reads

_UNITS = ("TB", "GB", "MB", "kB", "B")


def tree_json(forest: Forest, model: str, counted: Counted) -> dict[str, Any]:
    """Return counts as JSON; figures are means per tree."""
    totals, attention = counted.totals, counted.attention
    return {
        "source": forest.name,
        "model": model,
        "attention": asdict(attention),
        "trees": len(forest.trees),
        "trees_complete": forest.complete,
        "trees_in_file": forest.records,
        "prompt_tokens": _number(Fraction(sum(each.prompt for each in forest.trees), len(forest.trees))),
        "steps": _number(totals["steps"]),
        "generated_tokens": _number(counted.generated_tokens),
        "sharing_factor": counted.sharing_factor,
        "tree_tokens": _number(totals["tree_tokens"]),
        "path_tokens": _number(totals["path_tokens"]),
        "schemes": {name: _reads_json(reads) for name, reads in counted.reads.items()},
    }


def _reads_json(reads: Reads) -> dict[str, Any]:
    parts = ("kv", "queries", "outputs", "partials", "masks")
    return {
        "published_bytes": _number(reads.published),
        "physical_bytes": _number(reads.physical),
        "full_bytes": _number(reads.full),
        "published_partial_bytes": _number(reads.published_partials),
        "full_parts": {f"{name}_bytes": _number(getattr(reads, name)) for name in parts},
    }


def _number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def show_counted(forest: Forest, model: str, counted: Counted) -> None:
    """Print the source, and the bytes of each scheme."""
    for line in _about(forest, model, counted):
        say(line)
    out.print(_table(counted))
    for line in _explained(counted.attention):
        say(line)


def _about(forest: Forest, model: str, counted: Counted) -> list[str]:
    attention, totals = counted.attention, counted.totals
    of = "" if forest.records == 1 else f": {len(forest.trees)} of {forest.records} trees, {forest.complete} complete"
    factor = counted.sharing_factor
    prompt = float(sum(each.prompt for each in forest.trees)) / len(forest.trees)
    return [
        f"{forest.name}{of}{'; figures are means per tree' if len(forest.trees) > 1 else ''}",
        f"{model}: {attention.layers} layers, {attention.heads} heads, {attention.kv_heads} of keys and values, each of"
        f" {attention.head_dim} values of {attention.value_bytes} bytes{_windows(attention)}",
        f"prompt {prompt:,.6g} tokens{', the template + 1' if forest.template else ''}; {float(totals['steps']):,.6g}"
        f" steps, {float(counted.generated_tokens):,.8g} tokens generated",
        f"sharing factor {factor:.3f}: tokens of all paths to tokens of the tree"
        if factor
        else "no step is decoded: nothing is read",
    ]


def _windows(attention: Attention) -> str:
    window = f"; {attention.sliding_layers} layers see the last {attention.sliding_window:,} tokens of each branch"
    return window if attention.sliding_layers else ""


def _table(counted: Counted) -> Table:
    table = Table("scheme", box=None, pad_edge=False)
    headings = ("published\nKV", "published\npartials", "physical\nKV", "KV as\nlaunched", "full", "full, to\nleast")
    for heading in headings:
        table.add_column(heading, justify="right")
    reads = counted.reads
    least = min(each.full for each in reads.values())
    for name, each in reads.items():
        sizes = (each.published, each.published_partials, each.physical, each.kv, each.full)
        ratio = f"{float(each.full / least):,.2f}x" if least else "-"
        table.add_row(name, *(spell_bytes(float(size), _UNITS) for size in sizes), ratio)
    return table


def _explained(attention: Attention) -> list[str]:
    every, stored = (attention.kv_bytes(heads) for heads in (attention.heads, attention.kv_heads))
    return [
        f"published: keys and values per query head, {every:,} bytes a token; physical: per stored head, {stored:,}",
        "full: as launched, with queries, outputs, partial outputs, masks and scores",
    ]
