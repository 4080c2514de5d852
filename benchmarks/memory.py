"""How much memory a conversion takes at its peak."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

from page import megabytes, table
from shapes import LARGE_TABLE, WIDE, Shape, build, built

from prefold.convert.checkpoint.files import CONFIG
from prefold.convert.checkpoint.source import open_folder
from prefold.convert.fold.layout import Cut, read_cuts
from prefold.convert.fold.table import chunk_size

_CASE = Path(__file__).with_name("memory_case.py")
_TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def _measure(shape: Shape) -> dict[str, Any]:
    with built(shape) as source:
        tiny = build(shape.changed("tiny", **_TINY), source.with_name("tiny"))
        out = source.with_name("folded")
        done = subprocess.run(
            [sys.executable, str(_CASE), str(source), str(out), str(tiny)], check=True, capture_output=True, text=True
        )
        parts = _parts(source, out)
        table_bytes = prod(open_folder(out).entries[parts.pop("table_name")].shape) * shape.dtype.itemsize
        weights = open_folder(source).weight_bytes
    return {
        "shape": shape.name,
        "layers": shape.settings["num_hidden_layers"],
        "source_bytes": weights,
        "table_bytes": table_bytes,
        **parts,
        **json.loads(done.stdout.splitlines()[-1]),
    }


def _parts(source: Path, out: Path) -> dict[str, Any]:
    """Return the bytes of everything that a conversion has to hold."""
    cut: Cut = read_cuts(json.loads((out / CONFIG).read_text()))[0]
    entries = open_folder(source).entries
    name = f"{cut.embedding}.weight"
    itemsize = entries[name].size // prod(entries[name].shape)
    first = cut.columns[0].module.partition(".0.")[0] + ".0."
    return {
        "table_name": name,
        "embedding": entries[name].size,
        "first_layer": sum(entry.size for key, entry in entries.items() if key.startswith(first)),
        "chunk": chunk_size(cut, itemsize) * cut.row_width * itemsize,
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Convert each case in a process of its own."""
    if quick:
        return [_measure(WIDE.changed("small", num_hidden_layers=layers, vocab_size=4096)) for layers in (1, 3)]
    cases = [WIDE.changed(f"{WIDE.name}, {layers} layers", num_hidden_layers=layers) for layers in (4, 40)]
    return [_measure(shape) for shape in [*cases, LARGE_TABLE]]


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["bf16", "source MB", "table MB", "libraries MB", "first layer MB", "embedding MB", "chunk MB"]
    head += ["sum MB", "peak MB"]
    names = ("libraries", "first_layer", "embedding", "chunk")
    rows = [
        [
            f["shape"],
            megabytes(f["source_bytes"]),
            megabytes(f["table_bytes"]),
            *(megabytes(f[name]) for name in names),
            megabytes(sum(f[name] for name in names)),
            megabytes(f["peak"]),
        ]
        for f in figures
    ]
    return _TEXT + table(head, rows)


_TEXT = """## Memory

The largest resident memory of a process that converts one checkpoint, beside the sum of what it has to hold: the
libraries (measured after the conversion of a tiny model), the first layer, the embedding and one chunk of rows. What
the peak has above that sum is the chunk before, which is being written, and what the layer computes on the way to its
rows. The first two lines differ in their layers alone; the last has a table that is larger than the peak.

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
