"""Prompts, step by step, in whatever runs a decoder; needs no torch."""

import json
from collections.abc import Callable
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


def run_padded(step: Step, prompts: list[list[int]], *, batched: bool = True) -> NDArray[Any]:
    """Prefill all prompts, padded on the left, at once where they are ``batched``.

    Returns logits where they are not padded, ``[tokens, vocabulary]``.
    """
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(each)) + each for each in prompts])
    mask = np.array([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    positions, parts = np.maximum(mask.cumsum(1) - 1, 0), 1 if batched else len(prompts)
    of_ids, of_mask, of_positions = (np.array_split(each, parts) for each in (ids, mask, positions))
    split = zip(of_ids, of_mask, of_positions, strict=True)
    return np.concatenate([step(ids, mask, at, None)[0][mask == 1] for ids, mask, at in split])


def run_job(step: Step, job: Path, result: Path, process: dict[str, Any]) -> None:
    """Run a job, which is JSON, and write logits of every prompt and of the padded ones, and facts of the process."""
    asked = json.loads(job.read_text())
    made = {
        str(number): run_prompt(step, prompt, tokens, len(tokens))[0]
        for number, (prompt, tokens) in enumerate(zip(asked["prompts"], asked["continued"], strict=True))
    }
    made["padded"] = run_padded(step, asked["prompts"], batched=asked["batched"])
    np.savez(result, process=np.array(json.dumps(process)), **made)  # type: ignore[arg-type]
