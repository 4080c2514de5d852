"""Run an artefact's prompts in onnxruntime, in a process that has no torch: ``python -m`` this, FOLDER JOB RESULT."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefold.export.steps import Step, run_job


def _session(folder: Path) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def _step_of(session: Any) -> Step:
    kept = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    wanted = {value.name for value in session.get_inputs()}
    kind = np.float16 if kept[0].type == "tensor(float16)" else np.float32

    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        heads, width = kept[0].shape[1], kept[0].shape[3]
        cache = cache or [np.zeros((len(ids), heads, 0, width), kind)] * len(kept)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        past = {value.name: each for value, each in zip(kept, cache, strict=True)}
        logits, *made = session.run(None, {name: each for name, each in given.items() if name in wanted} | past)
        return logits, made

    return step


def _mapped(file: Path) -> bool | None:
    """Return whether this process has a file mapped into its memory; None where the system does not tell."""
    maps = Path("/proc/self/maps")
    return str(file.resolve()) in maps.read_text() if maps.exists() else None


def main(folder: Path, job: Path, result: Path) -> None:
    """Run a job."""
    step = _step_of(_session(folder))
    facts = {
        "torch": "torch" in sys.modules,
        "mapped": _mapped(folder / "table.data"),
        "version": version("onnxruntime"),
    }
    run_job(step, job, result, facts)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
