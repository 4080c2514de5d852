"""Proof of an artefact in its runtime: it runs what eager runs, as near as the source's own artefact does."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from prefold.convert.model import accepted
from prefold.export.errors import NotExported
from prefold.export.in_runtime import TABLES
from prefold.export.split_rows import SplitRows, tensors_of
from prefold.export.steps import Step, run_padded, run_prompt
from prefold.export.target import Distance, Logits, Target
from prefold.verify import Outcome

NEW_TOKENS = 16
# How much further from eager a fold's artefact may be than its source's: rows were rounded in other products than those
# of a prompt, and the largest of many roundings is not twice the same.
_MEAN, _LARGEST = 1.5, 4
_PROCESS = "prefold.export.in_runtime"
_ROWS_AT_ONCE = 4096
# What onnxruntime writes before the reason itself.
_PREAMBLE = re.compile(r"^[\w.]*: \[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?")


def run_eager(
    model: Any, prompts: list[list[int]], continued: list[list[int]] | None = None, *, batched: bool = True
) -> Logits:
    """Run prompts in torch; where they are not continued yet, greedily."""
    step = _step_of(model)
    made = [run_prompt(step, each, continued[n] if continued else [], NEW_TOKENS) for n, each in enumerate(prompts)]
    padded = run_padded(step, prompts, batched=batched)
    return Logits(prompts, [tokens for _, tokens in made], [each for each, _ in made], padded, {})


def _step_of(model: Any) -> Step:
    @torch.no_grad()
    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = accepted(model, {name: torch.from_numpy(each) for name, each in given.items()})
        made = model(**inputs, past_key_values=cache or DynamicCache(), use_cache=True)
        return made.logits.numpy(), made.past_key_values

    return step


def run_artefact(target: Target, folder: Path, like: Logits) -> Logits:
    """Run the prompts of ``like``, continued as there, in the runtime and in a process of its own.

    Raises:
        NotExported: the runtime does not load or run it.
    """
    with tempfile.TemporaryDirectory(prefix="prefold-") as work:
        job, result = Path(work, "job.json"), Path(work, "result.npz")
        job.write_text(json.dumps({"prompts": like.prompts, "continued": like.continued, "batched": target.batched}))
        command = [sys.executable, "-P", "-m", _PROCESS, target.to, *map(str, (folder, job, result))]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise NotExported(f"{target.name} does not run it: {_PREAMBLE.sub('', last)[:300]}")
        found = np.load(result)
        each = [found[str(number)] for number in range(len(like.prompts))]
        return Logits(like.prompts, like.continued, each, found["padded"], json.loads(str(found["process"])))


def check_process(target: Target, run: Logits) -> Outcome:
    """Require that the process which ran the artefact did without a package, and mapped the table's file."""
    table, problems = TABLES[target.to], list[str]()
    if target.without in run.process["imported"]:
        problems.append(f"the process imported {target.without}")
    if run.process["mapped"] is False:
        problems.append(f"{table} is not mapped")
    summary = f"{target.name} {run.process['version']}, without {target.without}, {table} mapped"
    return Outcome(not problems, summary, run.process, problems)


def check_rows(target: Target, folder: Path, tables: dict[str, SplitRows]) -> Outcome:
    """Compare every row of an artefact's table with the folded checkpoint's, byte for byte."""
    table, rows, size, wrong = TABLES[target.to], 0, 0, list[str]()
    stored = target.stored(folder, tensors_of(tables)) if (folder / table).exists() else {}
    for module, split in tables.items():
        rows, differ = rows + len(split.table), np.zeros(len(split.table), bool)
        for name, extents in zip(split.names(module), split.extents.values(), strict=True):
            width = sum(length for _, length in extents)
            size += len(split.table) * width
            if name in stored and stored[name].size == len(split.table) * width:
                differ |= _rows_that_differ(stored[name].reshape(-1, width), split.table, extents)
            else:
                wrong.append(f"{name}: not in {table} as the checkpoint has it")
        wrong += [f"{module}: row {row} is not the checkpoint's" for row in np.flatnonzero(differ)[:3]]
    summary = f"{rows:,} rows, byte for byte the checkpoint's; {size / 1e6:.2f} MB in {table}"
    return Outcome(not wrong, summary, {"rows": rows, "bytes": size}, wrong)


def _rows_that_differ(made: NDArray[Any], table: torch.Tensor, extents: list[tuple[int, int]]) -> NDArray[Any]:
    """Return, for every row, whether it has other bytes than the table has in ``extents``."""
    differ = np.empty(len(table), bool)
    for first in range(0, len(table), _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        read = table[chunk].contiguous().view(torch.uint8).numpy()
        wanted = np.concatenate([read[:, start : start + size] for start, size in extents], 1)
        differ[chunk] = (made[chunk] != wanted).any(1)
    return differ


def check_logits(run: Logits, eager: Logits, allowed: Distance) -> Outcome:
    """Require that a fold's artefact is as near to eager as its source's, whose distance is ``allowed``."""
    found, problems = run.distance(eager), list[str]()
    for what, one, two, margin in (
        ("in the mean", found.mean, allowed.mean, _MEAN),
        ("at most", found.largest, allowed.largest, _LARGEST),
    ):
        if not one <= margin * two:
            problems.append(f"{what} {one:.2e} from eager, where {margin} x {two:.2e} are let pass")
    figures = {"distance": asdict(found), "source_distance": asdict(allowed)}
    summary = f"{found.mean:.1e} from eager, at most {found.largest:.1e}"
    summary += f"; the source's own artefact {allowed.mean:.1e}, {allowed.largest:.1e}"
    return Outcome(not problems, summary, figures, problems)


def check_greedy(run: Logits, eager: Logits, allowed: Distance) -> Outcome:
    """Require the same best tokens, but where eager's two best are nearer than both may be off together."""
    tie, near, count, problems = 2 * _LARGEST * allowed.largest, 0, 0, list[str]()
    for number, (one, two) in enumerate(zip(run.each, eager.each, strict=True)):
        start = len(run.prompts[number]) - 1
        best, found = two[start:].argmax(1), one[start:].argmax(1)
        count += len(best)
        for at in np.flatnonzero(best != found):
            apart = float(two[start + at, best[at]] - two[start + at, found[at]])
            near += apart <= tie
            if not apart <= tie:
                problems.append(f"prompt {number}, step {at}: token {found[at]} for {best[at]}, {apart:.3g} apart")
    figures = {"tokens": count, "near_ties": near}
    return Outcome(
        not problems, f"{count - near - len(problems)} of {count} equal, {near} near ties", figures, problems
    )
