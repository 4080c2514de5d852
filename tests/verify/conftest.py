"""Two sources and their folds, made once for all faults, and copies of them to break."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from prefold.convert import convert_checkpoint
from tests.conftest import random_model, small_config

# Measuring processes inherit it: two of them at once would wait for each other's threads over these small models.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Pair:
    """A source and its fold."""

    source: Path
    folded: Path


MakePair = Callable[..., Pair]


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> MakePair:
    """Return a function that makes a source and its fold."""

    def make(model_type: str, dtype: torch.dtype = torch.float32, **changes: object) -> Pair:
        folder = tmp_path_factory.mktemp(model_type)
        random_model(small_config(model_type, **changes), dtype).save_pretrained(folder / "source")
        return Pair(folder / "source", convert_checkpoint(str(folder / "source"), folder / "folded").out)

    return make


@pytest.fixture(scope="session")
def llama(make_pair: MakePair) -> Pair:
    """Return a serial model with grouped keys and values, whose vocabulary is larger than what prompts use of it."""
    return make_pair("llama", vocab_size=257)


@pytest.fixture(scope="session")
def gpt_neox(make_pair: MakePair) -> Pair:
    """Return a parallel model."""
    return make_pair("gpt_neox")


@pytest.fixture
def breakable(tmp_path: Path) -> Callable[[Pair], Pair]:
    """Return a function that copies a fold, to be broken."""

    def copy(pair: Pair) -> Pair:
        return Pair(pair.source, shutil.copytree(pair.folded, tmp_path / "broken"))

    return copy
