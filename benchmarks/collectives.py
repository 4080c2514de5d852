"""Compare what chips send by the plan with what PyTorch's distributed tensors send.

``python -m benchmarks.collectives [--json FILE]`` runs one block in every layout on eight processes, and writes what
was counted beside what ``plan/cost/layouts.py`` says: as a section of ``docs/plan-validation.md``, or as JSON. A count
is never changed to what the formula says.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.collectives_page import Row, render
from benchmarks.collectives_task import Model, Task
from benchmarks.plan_page import write_section
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.attention import SHARDINGS, Sharding, moves
from prefold.plan.cost.layouts import LAYOUTS, Collective, Layout, collectives
from prefold.plan.cost.parts import all_parts, look_up
from prefold.plan.cost.workload import bytes_of
from prefold.plan.model.shape import Shape

__all__ = ["measure", "render"]
_ROOT = Path(__file__).resolve().parent.parent
# As collectives_block stores weights and sends activations.
WEIGHTS, ACTIVATIONS = bytes_of("bf16"), bytes_of("fp32")

_SERIAL = Model(48, 80, 8, 8, 8, gated=False, parallel=False, vocabulary=32, batch=8, length=5)
MODELS = {
    "serial, plain, multihead": _SERIAL,
    "serial, gated, multiquery": replace(_SERIAL, gated=True, key_value_heads=1),
    "parallel, gated, multiquery": replace(_SERIAL, gated=True, key_value_heads=1, parallel=True),
}
CUBE, LONG = (2, 2, 2), (4, 2, 1)
SPLITS: list[tuple[Layout, Sharding]] = [
    *((layout, sharding) for layout in LAYOUTS[:-1] for sharding in SHARDINGS),
    ("wg-xyz", "batch"),
]
_HOW: dict[Layout, str] = {
    "1d-ws": "DTensor",
    "2d-ws": "DTensor",
    "wg-x": "DTensor, weights redistributed",
    "wg-xy": "DTensor, weights redistributed",
    "wg-xyz": "fully_shard",
}
_FUNCTIONAL = "functional collective"


def tasks() -> list[Task]:
    """Return every block in every layout; one of them on a mesh too whose axes can be told from each other."""
    cube = [
        Task(model, CUBE, *split, folded) for model in MODELS.values() for split in SPLITS for folded in (False, True)
    ]
    long = [split for split in SPLITS if split[0] in ("2d-ws", "wg-x")]
    return cube + [Task(_SERIAL, LONG, *split, folded) for split in long for folded in (False, True)]


def measure(asked: Sequence[Task] | None = None, *, limit: float = 600) -> list[Row]:
    """Run tasks, all of them where none are named, and return a row for each part of each block.

    A row's ``case`` is the place of its task among those that were asked for, and ``error`` the largest difference of
    what the block returns from what it returns on one chip.

    Raises:
        RuntimeError: a process failed, or did not end within ``limit`` seconds; with the end of what it wrote.
    """
    asked = tasks() if asked is None else asked
    pairs = enumerate(zip(asked, _run(asked, limit), strict=True))
    return [{"case": case, **row} for case, (task, found) in pairs for row in _rows(task, found)]


def formula(task: Task) -> dict[str, float]:
    """Return the bytes that a chip sends by the plan, by part of the block."""
    model, mesh = task.model, Mesh(*task.mesh)
    shape, tokens = shape_of(model), model.batch * model.length
    by_head = task.attention == "head"
    parts = all_parts(shape, tokens, folded=task.folded, by_head=by_head)[0][1]
    joined = model.parallel and not task.folded
    names = ["attention + FFN" if joined else "attention", "FFN"][: len(parts)]
    sent = [collectives(task.layout, mesh, tokens, model.hidden, part) for part in parts]
    moved = moves(shape, task.attention, task.layout, mesh, tokens)
    rows = look_up(shape, task.layout, mesh, tokens, by_head=by_head) if task.folded else []
    names += ["all-to-all", "look-up"]
    return {name: _bytes(each) for name, each in zip(names, [*sent, moved, rows], strict=True)}


def shape_of(model: Model) -> Shape:
    """Return a block's shape as the plan has it: a decoder of one layer."""
    heads = (model.heads, model.key_value_heads, model.head_dim)
    return Shape("block", 1, model.hidden, model.inner, *heads, model.vocabulary, model.gated, model.parallel)


def _bytes(sent: list[Collective]) -> float:
    return sum(each.volume(exact=True) * (WEIGHTS if each.weights else ACTIVATIONS) for each in sent)


def _rows(task: Task, found: dict[str, Any]) -> list[Row]:
    """Return a row for each part for which something is sent, or should be."""
    expected = formula(task)
    parts = dict.fromkeys([*expected, *(each["part"] for of_one in found["sent"] for each in of_one)])
    rows = [_row(task, part, expected.get(part, 0.0), found) for part in parts]
    return [row for row in rows if row["counted"] or row["formula"]]


def _row(task: Task, part: str, expected: float, found: dict[str, Any]) -> Row:
    sent = [[each for each in of_one if each["part"] == part] for of_one in found["sent"]]
    counted = [sum(each["bytes"] for each in of_one) for of_one in sent]
    return {
        "model": next(name for name, model in MODELS.items() if model == task.model),
        "mesh": "x".join(map(str, task.mesh)),
        "layout": task.layout,
        "attention": task.attention,
        "folded": task.folded,
        "part": part,
        "collectives": dict(Counter(each["kind"] for each in sent[0])),
        "counted": max(counted),
        "formula": expected,
        "equal": all(abs(each - expected) < 1e-6 for each in counted),
        "error": found["error"],
        "how": _how(task, part, {each["kind"] for each in sent[0]}),
    }


def _how(task: Task, part: str, kinds: set[str]) -> str:
    functional = [_FUNCTIONAL] if "all-to-all" in kinds else []
    other = "DTensor" if part == "look-up" else _HOW[task.layout]
    return ", ".join([*functional, *([other] if kinds - {"all-to-all"} else [])]) or "-"


def _run(asked: Sequence[Task], limit: float) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        source, target, log = (Path(folder) / name for name in ("tasks.json", "found.json", "log"))
        source.write_text(json.dumps([asdict(task) for task in asked]), encoding="utf-8")
        code = _start([sys.executable, "-m", "benchmarks.collectives_worker", str(source), str(target)], log, limit)
        if code != 0:
            raise RuntimeError(f"the processes ended with {code}:\n{log.read_text(encoding='utf-8')[-2000:]}")
        return list(json.loads(target.read_text(encoding="utf-8")))


def _start(command: list[str], log: Path, limit: float) -> int | str:
    """Run a command, and end whatever it started where it fails or takes too long."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        started = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            return started.wait(limit)
        except subprocess.TimeoutExpired:
            return f"no result in {limit} seconds"
        finally:
            _end(started)


def _end(started: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started, unless it ended well."""
    if started.poll() != 0:
        try:
            os.killpg(started.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            started.wait()


def main() -> None:
    """Measure, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, and not the page")
    file = parser.parse_args().json
    rows = measure()
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    else:
        write_section("collectives", render(rows))


if __name__ == "__main__":
    main()
