"""Run the benchmarks and write ``docs/benchmarks.md`` with its plots: ``python benchmarks/run.py [--only SECTION]``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Protocol

import conversion
import copies
import edge
import look_up
import machine
import memory
import placement
import plots
import reads
import speed
import torch
import tree_speed
import whisper


class Section(Protocol):
    """A part of the page."""

    def measure(self, *, quick: bool = False) -> list[dict[str, Any]]:
        """Return the figures."""

    def render(self, figures: list[dict[str, Any]]) -> str:
        """Write them as Markdown."""


SECTIONS: dict[str, Section] = {
    "conversion": conversion,
    "copies": copies,
    "memory": memory,
    "reads": reads,
    "speed": speed,
    "look-up": look_up,
    "placement": placement,
    "whisper": whisper,
    "tree": tree_speed,
    "edge": edge,
}
PLOTS = {"reads": reads.PLOTS, "speed": speed.PLOTS, "look-up": look_up.PLOTS, "placement": placement.PLOTS}
_DOCS = Path(__file__).resolve().parent.parent / "docs"
_HEAD = """# Benchmarks

Written by `make bench`; the figures are also in `benchmarks.json`. Models have the named shapes and random weights:
what is measured does not depend on what the weights say.

**Every figure on this page is a CPU's; there is none from a GPU yet.** `python -m benchmarks.gpu` measures one in about
eight minutes and writes a page of its own; where there is no GPU it says so. `make gpu` prepares it for a machine
without a network.
"""


def main() -> None:
    """Measure the sections that were asked for, keep the others, and write the page from all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section alone; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds, shown and not written")
    parser.add_argument("--draw", action="store_true", help="measure nothing: write page and plots from what is stored")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where to write (default: docs)")
    parser.add_argument("--threads", type=int, help="for torch to use (default: its own choice)")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.quick:
        sys.stdout.write(_shown(asked.only or list(SECTIONS)))
    else:
        _write(asked.docs, [] if asked.draw else asked.only or list(SECTIONS))


def _measured(name: str, *, quick: bool = False) -> dict[str, Any]:
    return {"machine": machine.describe(), "figures": SECTIONS[name].measure(quick=quick)}


def _shown(names: list[str]) -> str:
    """Measure small models and draw what was found, to see that both work; returns the page."""
    results = {name: _measured(name, quick=True) for name in names}
    for name in results.keys() & PLOTS.keys():
        for plot in PLOTS[name].values():
            plots.svg(plot, results[name]["figures"])
    return _page(results)


def _write(docs: Path, names: list[str]) -> None:
    """Write after every section, so that a long run that is stopped is not lost."""
    file = docs / "benchmarks.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        results[name] = _measured(name)
        file.write_text(json.dumps(results, indent=2) + "\n")
        _publish(docs, results)
    _publish(docs, results)


def _publish(docs: Path, results: dict[str, Any]) -> None:
    (docs / "benchmarks.md").write_text(_page(results))
    for name in results.keys() & PLOTS.keys():
        for picture, plot in PLOTS[name].items():
            plots.save(docs / plots.PICTURES, picture, plot, results[name]["figures"])


def _page(results: dict[str, Any]) -> str:
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        if name in results:
            told = results[name]
            parts.append(f"{section.render(told['figures'])}\n\n{machine.sentence(told['machine'])}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
