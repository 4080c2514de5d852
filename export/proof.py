"""Proof of an artefact in its runtime: it runs what eager runs, as near as the source's own artefact does."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from prefold.convert.model import accepted
from prefold.export.errors import NotExported
from prefold.export.graph import MODEL, TABLE
from prefold.export.in_onnxruntime import Step, run_padded, run_prompt
from prefold.export.split_rows import SplitRows
from prefold.verify import Outcome

NEW_TOKENS = 16
# The largest of many roundings is not twice the same number: the fold's may be twice that of the source's artefact.
_MARGIN = 2
_ROWS_AT_ONCE = 4096
# What onnxruntime writes before the reason itself.
_PREAMBLE = re.compile(r"^[\w.]*: \[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?")


@dataclass(frozen=True)
class Logits:
    """What a model returns for prompts: logits of each, ``[tokens, vocabulary]``, and of a padded batch."""

    prompts: list[list[int]]
    continued: list[list[int]]
    each: list[NDArray[Any]]
    padded: NDArray[Any]
    process: dict[str, Any]

    def distance(self, other: "Logits") -> float:
        """Return the largest difference of two logits; NaN where one is."""
        pairs = [*zip(self.each, other.each, strict=True), (self.padded, other.padded)]
        return max(
            (float(np.abs(_wide(one) - _wide(two)).max()) for one, two in pairs), key=lambda each: (each != each, each)
        )


def run_eager(model: Any, prompts: list[list[int]], continued: list[list[int]] | None = None) -> Logits:
    """Run prompts in torch; where they are not continued yet, greedily."""
    step = _step_of(model)
    made = [run_prompt(step, each, continued[n] if continued else [], NEW_TOKENS) for n, each in enumerate(prompts)]
    return Logits(prompts, [tokens for _, tokens in made], [each for each, _ in made], run_padded(step, prompts), {})


def _step_of(model: Any) -> Step:
    @torch.no_grad()
    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = accepted(model, {name: torch.from_numpy(each) for name, each in given.items()})
        made = model(**inputs, past_key_values=cache or DynamicCache(), use_cache=True)
        return made.logits.numpy(), made.past_key_values

    return step


def run_artefact(folder: Path, like: Logits) -> Logits:
    """Run the prompts of ``like``, continued as there, in onnxruntime and in a process without torch.

    Raises:
        NotExported: onnxruntime does not load or run it.
    """
    with tempfile.TemporaryDirectory(prefix="prefold-") as work:
        job, result = Path(work, "job.json"), Path(work, "result.npz")
        job.write_text(json.dumps({"prompts": like.prompts, "continued": like.continued}))
        command = [sys.executable, "-P", "-m", "prefold.export.in_onnxruntime", *map(str, (folder, job, result))]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise NotExported(f"onnxruntime does not run it: {_PREAMBLE.sub('', last)[:300]}")
        found = np.load(result)
        each = [found[str(number)] for number in range(len(like.prompts))]
        return Logits(like.prompts, like.continued, each, found["padded"], json.loads(str(found["process"])))


def check_process(run: Logits) -> Outcome:
    """Require that the process which ran the artefact had no torch, and mapped the table's file."""
    problems = ["the process imported torch"] if run.process["torch"] else []
    problems += [f"{TABLE} is not mapped"] if run.process["mapped"] is False else []
    version = run.process["version"]
    return Outcome(not problems, f"onnxruntime {version}, without torch, {TABLE} mapped", run.process, problems)


def check_logits(run: Logits, eager: Logits, allowed: float) -> Outcome:
    """Require that a fold's artefact is as near to eager as its source's, whose distance is ``allowed``."""
    distance = run.distance(eager)
    passed = distance <= _MARGIN * allowed
    summary = f"at most {distance:.2g} from eager; the source's own artefact {allowed:.2g}"
    problems = [] if passed else [f"{distance:.3g} from eager, where {_MARGIN} x {allowed:.3g} are let pass"]
    return Outcome(passed, summary, {"distance": distance, "source_distance": allowed}, problems)


def check_greedy(run: Logits, eager: Logits, allowed: float) -> Outcome:
    """Require the same best tokens, but where eager's two best are nearer than twice what is let pass."""
    near, problems, count = 0, list[str](), 0
    for number, (one, two) in enumerate(zip(run.each, eager.each, strict=True)):
        start = len(run.prompts[number]) - 1
        best, found = two[start:].argmax(1), one[start:].argmax(1)
        count += len(best)
        for at in np.flatnonzero(best != found):
            apart = float(two[start + at, best[at]] - two[start + at, found[at]])
            near += apart <= 2 * _MARGIN * allowed
            if not apart <= 2 * _MARGIN * allowed:
                problems.append(f"prompt {number}, step {at}: token {found[at]} for {best[at]}, {apart:.3g} apart")
    figures = {"tokens": count, "near_ties": near}
    return Outcome(
        not problems, f"{count - near - len(problems)} of {count} equal, {near} near ties", figures, problems
    )


def check_rows(folder: Path, tables: dict[str, SplitRows]) -> Outcome:
    """Compare every row of an artefact's table with the folded checkpoint's, byte for byte."""
    stored = onnx_ir.load(folder / MODEL).graph.initializers
    rows, wrong, size = 0, list[str](), (folder / TABLE).stat().st_size
    for module, split in tables.items():
        rows += len(split.table)
        differ = np.zeros(len(split.table), bool)
        for name, extents in split.extents.items():
            tensor: Any = stored[f"{module}.{name}"].const_value
            differ |= _rows_that_differ(folder / str(tensor.location), tensor.offset, split.table, extents)
        wrong += [f"{module}: row {row} is not the checkpoint's" for row in np.flatnonzero(differ)[:3]]
    summary = f"{rows:,} rows, byte for byte the checkpoint's; {size / 1e6:.2f} MB in {TABLE}"
    return Outcome(not wrong, summary, {"rows": rows, "bytes": size}, wrong)


def _rows_that_differ(file: Path, offset: int, table: torch.Tensor, extents: list[tuple[int, int]]) -> NDArray[Any]:
    """Return, for every row, whether a tensor in a file has other bytes than the table has in ``extents``."""
    width = sum(size for _, size in extents)
    made = np.memmap(file, np.uint8, "r", offset, (len(table), width))
    differ = np.empty(len(table), bool)
    for first in range(0, len(table), _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        read = table[chunk].contiguous().view(torch.uint8).numpy()
        wanted = np.concatenate([read[:, start : start + size] for start, size in extents], 1)
        differ[chunk] = (made[chunk] != wanted).any(1)
    return differ


def _wide(logits: NDArray[Any]) -> NDArray[Any]:
    return logits.astype(np.float32)
