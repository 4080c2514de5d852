"""Run an artefact's prompts in its runtime, in a process of its own: ``python -m`` this, TARGET FOLDER JOB RESULT.

A runtime is imported by the function that loads it: onnxruntime and OpenVINO run where there is no torch.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefold.export.steps import Step, run_job


def load_onnx(folder: Path) -> Step:
    """Load a graph in onnxruntime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
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


def load_openvino(folder: Path) -> Step:
    """Load a model in OpenVINO, which holds the cache itself: that of the last step."""
    import openvino

    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    request, wanted = compiled.create_infer_request(), {value.any_name for value in compiled.inputs}

    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        if cache is None:
            request.reset_state()
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        given["beam_idx"] = np.arange(len(ids), dtype=np.int32)
        made = request.infer({name: each for name, each in given.items() if name in wanted})
        return made["logits"].copy(), request

    return step


def load_executorch(folder: Path) -> Step:
    """Load a program in ExecuTorch, whose reader for Python takes tensors of torch."""
    import torch
    from executorch.runtime import Runtime

    table = folder / "table.ptd"
    program = Runtime.get().load_program(folder / "model.pte", data_path=table if table.exists() else None)
    method, described = program.load_method("forward"), json.loads((folder / "decoder.json").read_text())
    wanted, cached = described["inputs"], 2 * described["layers"]
    empty = torch.zeros(1, described["heads"], 0, described["head_size"])

    def step(ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], cache: Any) -> tuple[NDArray[Any], Any]:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        past = cache or [empty] * cached
        made = method.execute([*(torch.from_numpy(given[name].copy()) for name in wanted), *past])
        logits, *kept = (each.clone() for each in made)  # the program's own memory, which its next run writes
        return logits.numpy(), kept

    return step


LOADERS = {"onnx": load_onnx, "openvino": load_openvino, "executorch": load_executorch}
# The package of each runtime, and the file that holds the table.
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch"}
TABLES = {"onnx": "table.data", "openvino": "openvino_model.bin", "executorch": "table.ptd"}


def _mapped(file: Path) -> bool | None:
    """Return whether this process has a file mapped into its memory; None where the system does not tell."""
    maps = Path("/proc/self/maps")
    return str(file.resolve()) in maps.read_text() if maps.exists() else None


def main(to: str, folder: str, job: str, result: str) -> None:
    """Run a job, and add facts of this process."""
    step = LOADERS[to](Path(folder))
    facts = {
        "imported": [name for name in ("torch", "transformers") if name in sys.modules],
        "mapped": _mapped(Path(folder, TABLES[to])),
        "version": version(PACKAGES[to]),
    }
    run_job(step, Path(job), Path(result), facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
