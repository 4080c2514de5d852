"""Measure attention over a tree: ``python benchmarks/tree.py [--quick] [--case NAME]``.

Writes its section of ``docs/benchmarks.md``; ``benchmarks/run.py --only tree`` does the same with all cases.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine
import run
import torch
import tree_speed


def main() -> None:
    """Measure the cases that were asked for, keep the others, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=tree_speed.CASES, action="append", help="measure this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, shown and not written")
    parser.add_argument("--docs", type=Path, default=run._DOCS, help="where to write (default: docs)")
    parser.add_argument("--threads", type=int, help="for torch to use (default: its own choice)")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    for name in asked.case or tree_speed.CASES:
        figures = [{"name": name} | each for each in tree_speed.measure_case(name, quick=asked.quick)]
        if asked.quick:
            sys.stdout.write(f"{json.dumps(figures)}\n")
        else:
            _keep(asked.docs, name, figures)


def _keep(docs: Path, name: str, figures: list[dict[str, Any]]) -> None:
    """Put the figures of one case in the place of its former ones, and write the page."""
    file = docs / "benchmarks.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    former = [each for each in stored.get("tree", {}).get("figures", []) if each["name"] != name]
    order = list(tree_speed.CASES)
    kept = sorted(former + figures, key=lambda each: order.index(each["name"]))
    stored["tree"] = {"machine": machine.describe(), "figures": kept}
    file.write_text(json.dumps(stored, indent=2) + "\n")
    run._publish(docs, stored)


if __name__ == "__main__":
    main()
