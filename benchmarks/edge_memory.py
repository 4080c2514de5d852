"""Report the memory of a process that loads an artefact: ``python edge_memory.py TARGET FOLDER VOCABULARY``."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from cache import drop

from prefold.export.in_runtime import LOADERS
from prefold.export.steps import run_prompt

# What a process imports before it is measured.
_LIBRARIES = {"onnx": ["onnxruntime"], "openvino": ["openvino"], "executorch": ["torch", "executorch.runtime"]}
_PROMPT, _STEPS = 16, 16
_OWN = re.compile(r"^Private_(?:Clean|Dirty): +(\d+) kB", re.MULTILINE)


def own() -> int:
    """Return the bytes that only this process holds in memory, mapped files' pages among them."""
    return 1024 * sum(map(int, _OWN.findall(Path("/proc/self/smaps_rollup").read_text())))


def main(to: str, folder: str, vocabulary: str) -> None:
    """Report what loading takes, and what a text of random tokens has taken behind it."""
    for file in Path(folder).iterdir():  # a fault maps what the system holds around a page of a file just written
        drop(file)
    for library in _LIBRARIES[to]:
        import_module(library)
    before = own()
    step = LOADERS[to](Path(folder))
    loaded = own()
    prompt, given = np.split(np.random.default_rng(0).integers(int(vocabulary), size=_PROMPT + _STEPS), [_PROMPT])
    run_prompt(step, prompt.tolist(), given.tolist(), _STEPS)
    sys.stdout.write(json.dumps({"loaded": loaded - before, "used": own() - before}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
