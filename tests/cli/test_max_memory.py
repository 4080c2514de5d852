"""A command that may not take more memory than it is told."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefold.cli.memory import limited_memory
from prefold.convert import StorageError
from tests.conftest import Checkpoint

MUCH = 1 << 31


def taken() -> int:
    """Return the bytes that the system counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))


@pytest.mark.parametrize("take", [lambda: bytearray(MUCH), lambda: torch.empty(MUCH, dtype=torch.uint8)])
def test_what_takes_more_is_told_so_and_later_commands_are_free(take):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(StorageError, match="--max-memory"), limited_memory(taken() + (1 << 29)):
        take()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(MUCH)) == MUCH


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError), limited_memory(taken() + (1 << 30)):
        raise KeyError("other")


def test_no_limit_is_none():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_processes_that_it_starts_are_limited_too():
    script = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    with limited_memory(1 << 32):
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) == 1 << 32


def test_a_conversion_without_enough_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path):
    source = checkpoint()
    command = [sys.executable, "-m", "prefold.cli.main", "convert", source, tmp_path / "out", "--max-memory", "300MB"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "prefold: --max-memory: a process needs more than 0.30 GB"
    assert os.listdir(tmp_path) == ["source"]
