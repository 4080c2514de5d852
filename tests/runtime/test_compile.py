"""Compiled as one graph, the folded model says what its source says, and lets go of its rows."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.conftest import load, tokens
from tests.runtime.pairs import Pair, generate, logits, make_pair

# Traced, differentiated and made functional like any compiled graph, but run by torch's own kernels: needs no compiler.
BACKEND = "aot_eager"
CLOSE = {"rtol": 1.3e-6, "atol": 1e-5}


pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("llama"), num_hidden_layers=2)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral", "gpt_neox", "falcon", "olmo2", "mamba"])
def test_whole_model_is_one_graph(model_type: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, model_type, num_hidden_layers=2)
    compiled = torch.compile(pair.folded, fullgraph=True, backend=BACKEND)
    for ids in (tokens(), tokens(seed=1)):
        torch.testing.assert_close(logits(compiled, ids), logits(pair.source, ids), **CLOSE)
        assert pair.folded.prefold_rows[0].values is None


def test_base_model_is_one_graph(llama: Pair) -> None:
    model = load(llama.folded_folder)
    model.base_model.compile(fullgraph=True, backend=BACKEND)
    for ids in (tokens(), tokens(seed=1)):
        torch.testing.assert_close(logits(model, ids), logits(llama.source, ids), **CLOSE)
        assert model.prefold_rows[0].values is None


def test_each_block_is_one_graph(llama: Pair) -> None:
    """Rows then come into a graph from outside, and are let go inside it."""
    model = load(llama.folded_folder)
    for block in model.model.layers:
        block.compile(fullgraph=True, backend=BACKEND)
    for ids in (tokens(), tokens(seed=1)):
        torch.testing.assert_close(logits(model, ids), logits(llama.source, ids), **CLOSE)
        assert model.prefold_rows[0].values is None


def test_generates_with_a_static_cache(llama: Pair) -> None:
    model = load(llama.folded_folder)
    model.forward = torch.compile(model.forward, fullgraph=True, backend=BACKEND)
    ids = tokens()
    made = generate(model, ids, cache_implementation="static", max_new_tokens=5)
    assert torch.equal(made, generate(llama.source, ids, max_new_tokens=5))
    assert model.prefold_rows[0].values is None


def _can_build() -> bool:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()


@pytest.mark.skipif(not _can_build(), reason="torch's default backend needs a C++ compiler and Python's headers")
def test_default_backend_says_what_the_compiled_source_says(llama: Pair) -> None:
    ids = tokens()
    source, folded = (torch.compile(model, fullgraph=True) for model in (llama.source, load(llama.folded_folder)))
    torch.testing.assert_close(logits(folded, ids), logits(source, ids), **CLOSE)
    assert folded.prefold_rows[0].values is None
