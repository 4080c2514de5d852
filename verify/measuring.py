"""Run one measurement in a fresh process."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefold.convert.errors import PrefoldError
from prefold.verify.job import Job, load_figures


class ProbeFailed(PrefoldError):
    """A checkpoint could not be loaded or run."""


@dataclass(frozen=True)
class Measured:
    """What was found: figures, and what the model said, by name."""

    figures: dict[str, Any]
    outputs: dict[str, torch.Tensor]


def measure(job: Job) -> Measured:
    """Measure in a fresh process with an empty cache of remote code; nothing of this process is shared.

    Raises:
        ProbeFailed: the checkpoint cannot be loaded, or does not run.
    """
    with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
        folder = Path(scratch)
        job.save(folder)
        environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefold.verify.probe", str(folder)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ProbeFailed(f"{Path(job.folder).name}: does not run: {_last_line(done.stderr)}")
        outputs = folder / "outputs.safetensors"
        return Measured(load_figures(folder), load_file(outputs) if outputs.exists() else {})


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it was killed"
