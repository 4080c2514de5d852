"""Run one measurement in a process that has seen no other."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load

from prefold.common.errors import PrefoldError
from prefold.verify.forking import ForkServer, shared_server, surroundings
from prefold.verify.probe.job import Job


class ProbeFailed(PrefoldError):
    """A checkpoint could not be loaded or run."""


@dataclass(frozen=True)
class Measured:
    """The result of one measurement: figures, and the model's outputs by name."""

    figures: dict[str, Any]
    outputs: dict[str, torch.Tensor]


def measure(job: Job, *, isolated: bool = False) -> Measured:
    """Measure in a fork of a process that has seen no checkpoint, with an empty cache of remote code.

    ``isolated`` starts that process for this measurement alone.

    Raises:
        ProbeFailed: the checkpoint cannot be loaded, or does not run.
    """
    server = ForkServer() if isolated else shared_server()
    try:
        with tempfile.TemporaryDirectory(prefix="prefold-") as modules, tempfile.TemporaryFile() as printed:
            answer = _asked(server, printed, surroundings() | {"job": asdict(job), "modules": modules})
            if answer is None:
                raise ProbeFailed(f"{Path(job.folder).name}: does not run: {_last_words(printed)}")
            return answer
    finally:
        if isolated:
            server.close()


def _asked(server: ForkServer, printed: IO[bytes], request: dict[str, Any]) -> Measured | None:
    """Send a request and read its answer; None where the process ended before."""
    try:
        with server.fork(printed) as child, child.makefile("rb") as answer:
            child.sendall(json.dumps(request).encode())
            child.shutdown(1)
            sizes = answer.read(16)
            figures = answer.read(int.from_bytes(sizes[:8], "little"))
            tensors = answer.read(int.from_bytes(sizes[8:], "little"))
    except OSError:
        return None
    if len(sizes) < 16 or len(tensors) < int.from_bytes(sizes[8:], "little"):
        return None
    return Measured(json.loads(figures), load(tensors))


def _last_words(printed: IO[bytes]) -> str:
    """Return the last line that a process printed before it ended; all lines under ``PREFOLD_DEBUG``."""
    printed.seek(0)
    lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    if os.environ.get("PREFOLD_DEBUG") == "1":
        return "\n".join(lines)
    return lines[-1] if lines else "it was killed"
