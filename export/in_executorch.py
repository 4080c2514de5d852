"""Run an artefact's prompts in ExecuTorch, in a process of its own: ``python -m`` this, FOLDER JOB RESULT."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from executorch.runtime import Runtime
from numpy.typing import NDArray

from prefold.export.steps import Step, run_job


def _step_of(folder: Path, method: Any) -> Step:
    described = json.loads((folder / "decoder.json").read_text())
    wanted, cached, shape = (
        described["inputs"],
        2 * described["layers"],
        (described["heads"], 0, described["head_size"]),
    )

    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        past = cache or [torch.zeros(len(ids), *shape)] * cached
        made = method.execute([*(torch.from_numpy(given[name].copy()) for name in wanted), *past])
        logits, *kept = (each.clone() for each in made)  # the program's own memory, which its next run writes
        return logits.numpy(), kept

    return step


def main(folder: Path, job: Path, result: Path) -> None:
    """Run a job."""
    program = Runtime.get().load_program(folder / "model.pte")
    step = _step_of(folder, program.load_method("forward"))
    run_job(step, job, result, {"transformers": "transformers" in sys.modules, "version": version("executorch")})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
