"""Proof of an artefact in its runtime: it runs what eager runs, as near as the source's own artefact does."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from prefold.convert.model import accepted
from prefold.export.errors import NotExported
from prefold.export.steps import Step, run_padded, run_prompt
from prefold.export.target import Logits, Target
from prefold.verify import Outcome

NEW_TOKENS = 16
# The largest of many roundings is not twice the same number: the fold's may be twice that of the source's artefact.
_MARGIN = 2
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
        command = [sys.executable, "-P", "-m", target.process, *map(str, (folder, job, result))]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise NotExported(f"{target.name} does not run it: {_PREAMBLE.sub('', last)[:300]}")
        found = np.load(result)
        each = [found[str(number)] for number in range(len(like.prompts))]
        return Logits(like.prompts, like.continued, each, found["padded"], json.loads(str(found["process"])))


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
