"""Two sources and their folds, made once for all faults, and copies of them to break."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.demo import CHECKPOINT
from tests.conftest import fold_options, random_model, small_config
from tests.verify.tokenizer import save_tokenizer

# Measuring processes inherit it: two of them at once would wait for each other's threads over these small models.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Pair:
    """A source and its fold."""

    source: Path
    folded: Path


MakePair = Callable[..., Pair]
MakeFolds = Callable[..., Pair]
Breakable = Callable[[Pair], Pair]


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


@pytest.fixture(scope="session")
def make_folds(tmp_path_factory: pytest.TempPathFactory) -> MakeFolds:
    """Return a function that folds a small source with a tokenizer, made once for each type and shape."""
    sources: dict[tuple[Any, ...], Path] = {}

    def make(model_type: str, dtype: torch.dtype, changes: dict[str, Any] | None = None, **options: Any) -> Pair:
        key = (model_type, dtype, *(changes or {}).items())
        if key not in sources:
            sources[key] = tmp_path_factory.mktemp(model_type) / "source"
            random_model(small_config(model_type, **(changes or {})), dtype).save_pretrained(sources[key])
            save_tokenizer(sources[key])
        out = tmp_path_factory.mktemp("folds") / "folded"
        return Pair(sources[key], convert_checkpoint(str(sources[key]), out, options=fold_options(**options)).out)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return the trained model that comes with prefold, folded in int8."""
    out = tmp_path_factory.mktemp("trained") / "int8"
    return Pair(CHECKPOINT, convert_checkpoint(str(CHECKPOINT), out, options=FoldOptions(table_dtype="int8")).out)


@pytest.fixture
def breakable(tmp_path: Path) -> Callable[[Pair], Pair]:
    """Return a function that copies a fold, to be broken."""

    def copy(pair: Pair) -> Pair:
        return Pair(pair.source, shutil.copytree(pair.folded, tmp_path / "broken"))

    return copy
