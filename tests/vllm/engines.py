"""vLLM's engines, each asked for the greedy tokens of the same prompts."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.checkpoints import prompts

STEPS = 32
_TOP = 5
# One rank runs in this process, so that what it raises is seen here; on one core, if another worker tests beside it.
_CORE = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
_WHERE = {"VLLM_CPU_OMP_THREADS_BIND": _CORE} if _CORE else {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
_ONE_RANK = _WHERE | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Said:
    """What an engine said to one prompt: tokens, and of each step the log-probabilities of the five best."""

    tokens: list[int]
    best: list[dict[int, float]]


@contextmanager
def engine(folder: Path, *, ranks: int = 1, apart: bool = False, **options: Any) -> Iterator[Any]:
    """Start an engine over a checkpoint, eager unless options say otherwise, and end it.

    ``apart`` is for what an engine leaves behind in its process, so that a second one could not start there.
    """
    from vllm import LLM

    defaults = {"enforce_eager": True, "max_model_len": 192, "max_num_seqs": 32, "skip_tokenizer_init": True}
    mask = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (_ONE_RANK if ranks == 1 else _TWO_RANKS).items():
            patch.setenv(name, value)
        if apart:
            patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
        with _no_collection():
            llm = LLM(model=str(folder), dtype="float32", seed=0, tensor_parallel_size=ranks, **(defaults | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            os.sched_setaffinity(0, mask)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Free no garbage while an engine compiles.

    Projections of engines before it, and of its draft, call torch's operators when they are freed. Within a trace that
    fails, and leaves this process with a torch whose tensors have no values.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def say(llm: Any, asked: list[list[int]] | None = None, **request: Any) -> list[Said]:
    """Return the greedy answers to prompts."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, detokenize=False, logprobs=_TOP)
    given = [{"prompt_token_ids": tokens} for tokens in asked or prompts()]
    answers = [out.outputs[0] for out in llm.generate(given, sampling, use_tqdm=False, **request)]
    return [
        Said(list(each.token_ids), [{token: found.logprob for token, found in step.items()} for step in each.logprobs])
        for each in answers
    ]


_answered: dict[str, list[Said]] = {}


def answers(folder: Path, **options: Any) -> list[Said]:
    """Return what an engine says over a checkpoint; one engine is started for each checkpoint and options."""
    key = f"{folder} {sorted(options.items())} {os.environ.get('PREFOLD_PLACEMENT')}"
    if key not in _answered:
        with engine(folder, **options) as llm:
            _answered[key] = say(llm)
    return _answered[key]


def tokens(said: list[Said]) -> list[list[int]]:
    """Return the tokens alone."""
    return [each.tokens for each in said]


def are_close(one: Said, other: Said) -> bool:
    """Compare as vLLM's own tests do: where two answers part, each one's token is among the other's best five."""
    for step, (mine, yours) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        if mine != yours:
            return mine in other.best[step] and yours in one.best[step]
    return True
