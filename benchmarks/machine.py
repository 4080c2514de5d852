"""What a figure depends on: the machine and the versions of the libraries."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Return generic facts: nothing that tells one machine from another of its kind."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def sentence(machine: dict[str, Any]) -> str:
    """Say it in one line."""
    return (
        f"Measured on: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB;"
        f" threads: {machine['threads']}; Python {machine['python']}, torch {machine['torch']},"
        f" transformers {machine['transformers']}. Load average before the run: {machine['load']}."
    )
