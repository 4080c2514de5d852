"""Engines are started where vLLM is installed: in an environment of its own, by ``make test-vllm``."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vllm.checkpoints import CUTS, SHAPES, fold, save
from tests.vllm.engines import answers, tokens

# Without the first the engine takes nearly all of the machine's memory for its cache.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@pytest.fixture(scope="session", autouse=True)
def engine_environment(tmp_path_factory) -> Iterator[None]:
    """Set what vLLM needs on a CPU, and let it keep compiled code for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm-cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that makes the folder of a small model once: ``source`` and ``folded`` lie in it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save(SHAPES[name], made[name] / "source")
            fold(made[name] / "source", made[name] / "folded", cut=CUTS.get(name, "auto"))
        return made[name]

    return make


@pytest.fixture(scope="session")
def llama(checkpoint) -> Path:
    """Return the folder of the small Llama."""
    return checkpoint("llama")


@pytest.fixture(scope="session")
def said(llama) -> list[list[int]]:
    """Return what its source says."""
    return tokens(answers(llama / "source"))
