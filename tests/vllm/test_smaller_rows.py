"""Rows that are stored in fewer bytes: what vLLM says with them is what transformers says."""

import pytest
import torch

from tests.conftest import load
from tests.vllm.checkpoints import fold, prompts
from tests.vllm.engines import STEPS, answers, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.fixture(scope="module", params=["int8", "float8_e4m3fn"])
def smaller(request, llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaller") / "folded"
    return fold(llama / "source", folder, table_dtype=request.param, quantize_residual=True)


@pytest.fixture(scope="module")
def said(smaller):
    """What transformers says, greedily."""
    model = load(smaller)
    model.generation_config.eos_token_id = None  # an engine is told to go on, too
    made = [model.generate(torch.tensor([asked]), max_new_tokens=STEPS, do_sample=False) for asked in prompts()]
    return [row[0, -STEPS:].tolist() for row in made]


@pytest.mark.parametrize("placement", ["device", "disk"])
@pytest.mark.parametrize("eager", [True, False])
def test_one_rank(smaller, said, placement, eager):
    options = {"hf_overrides": {"prefold_placement": placement}, "enforce_eager": eager}
    assert tokens(answers(smaller, **options)) == said


@pytest.mark.ranks
@pytest.mark.parametrize("placement", ["device", "host"])
def test_each_of_two_ranks_holds_the_bytes_of_its_heads(smaller, said, placement):
    assert tokens(answers(smaller, ranks=2, hf_overrides={"prefold_placement": placement})) == said
