"""Run an artefact's prompts in onnxruntime, in a process that has no torch: ``python -m`` this, FOLDER JOB RESULT.

A job is JSON: ``prompts``, and ``continued``, the tokens behind each of them.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Takes new tokens, a mask of all tokens so far, positions of the new ones and a cache; returns logits and a cache.
Step = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], Any], tuple[NDArray[Any], Any]]


def run_prompt(step: Step, prompt: list[int], continued: list[int], count: int) -> tuple[NDArray[Any], list[int]]:
    """Prefill a prompt and decode behind it, one token a step; returns logits, ``[tokens, vocabulary]``, and tokens.

    Where ``continued`` is empty, the ``count`` best tokens are appended, each after the other.
    """
    logits, cache = step(np.array([prompt]), np.ones((1, len(prompt)), np.int64), np.arange(len(prompt))[None], None)
    collected, tokens = [logits[0]], list[int]()
    for at in range(count):
        tokens.append(continued[at] if continued else int(collected[-1][-1].argmax()))
        length = len(prompt) + at
        mask, position = np.ones((1, length + 1), np.int64), np.array([[length]])
        logits, cache = step(np.array([tokens[-1:]]), mask, position, cache)
        collected.append(logits[0])
    return np.concatenate(collected), tokens


def run_padded(step: Step, prompts: list[list[int]]) -> NDArray[Any]:
    """Prefill all prompts at once, padded on the left; returns logits where they are not padded, ``[tokens, ...]``."""
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(each)) + each for each in prompts])
    mask = np.array([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    logits, _ = step(ids, mask, np.maximum(mask.cumsum(1) - 1, 0), None)
    kept: NDArray[Any] = logits[mask == 1]
    return kept


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
    """Run a job and write logits of every prompt, of the padded batch, and what the process looked like."""
    asked = json.loads(job.read_text())
    step = _step_of(_session(folder))
    made = {
        str(number): run_prompt(step, prompt, tokens, len(tokens))[0]
        for number, (prompt, tokens) in enumerate(zip(asked["prompts"], asked["continued"], strict=True))
    }
    process: dict[str, Any] = {"torch": "torch" in sys.modules, "mapped": _mapped(folder / "table.data")}
    process["version"] = version("onnxruntime")
    made |= {"padded": run_padded(step, asked["prompts"]), "process": np.array(json.dumps(process))}
    np.savez(result, **made)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
