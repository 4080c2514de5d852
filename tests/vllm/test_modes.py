"""What an engine does beside running a model is the same for a folded one."""

import pytest

from tests.vllm.checkpoints import prompts
from tests.vllm.engines import answers, engine, say, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


def test_prefixes_that_are_cached(llama):
    """Prompts that share 64 tokens, which the second round finds in the cache."""
    shared = prompts()[9] + prompts()[18]
    asked = [(shared * 2)[:64] + prompt[:8] for prompt in prompts()]
    with engine(llama / "source", enable_prefix_caching=False) as llm:
        expected = tokens(say(llm, asked))
    with engine(llama / "folded", enable_prefix_caching=True) as llm:
        assert tokens(say(llm, asked)) == expected
        assert tokens(say(llm, asked)) == expected


@pytest.mark.parametrize("eager", [True, False])
def test_prompts_in_chunks(llama, said, eager):
    options = {"enable_chunked_prefill": True, "max_num_batched_tokens": 40, "enforce_eager": eager}
    assert tokens(answers(llama / "folded", **options)) == said


ELSEWHERE = [("host", True), pytest.param("disk", True, marks=pytest.mark.smoke), ("host", False), ("disk", False)]


@pytest.mark.parametrize(("placement", "eager"), ELSEWHERE)
def test_a_table_that_lies_elsewhere(llama, said, placement, eager):
    options = {"hf_overrides": {"prefold_placement": placement}, "enforce_eager": eager}
    assert tokens(answers(llama / "folded", **options)) == said


@pytest.mark.ranks
def test_a_placement_from_the_environment_on_two_ranks(llama, said, monkeypatch):
    monkeypatch.setenv("PREFOLD_PLACEMENT", "disk")
    assert tokens(answers(llama / "folded", ranks=2)) == said


@pytest.mark.ranks
def test_a_table_on_the_host_of_two_ranks_is_cut(llama, said):
    with engine(llama / "folded", ranks=2, hf_overrides={"prefold_placement": "host"}) as llm:
        assert tokens(say(llm)) == said
