"""Cases that are measured in a process of their own, which prints what it found as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def run_case(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """Run a file beside this one with arguments and return what the last line that it prints says."""
    file = Path(__file__).with_name(f"{name}.py")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads, **(environment or {})},
    )
    return json.loads(done.stdout.splitlines()[-1])


def tell(found: object) -> None:
    """Print what a case found."""
    sys.stdout.write(f"{json.dumps(found)}\n")
