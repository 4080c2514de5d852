"""What an engine does beside running a model is the same for a folded one."""

import pytest

from tests.vllm.checkpoints import prompts
from tests.vllm.engines import answers, engine, say, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.fixture(scope="module")
def llama(checkpoint):
    return checkpoint("llama")


@pytest.fixture(scope="module")
def said(llama):
    """What the source says."""
    return tokens(answers(llama / "source"))


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


@pytest.mark.parametrize(("target", "draft"), [("source", "folded"), ("folded", "source"), ("folded", "folded")])
def test_a_draft_model(llama, said, checkpoint, target, draft):
    asked = {"method": "draft_model", "model": str(checkpoint("draft") / draft), "num_speculative_tokens": 3}
    assert tokens(answers(llama / target, speculative_config=asked)) == said


def test_a_draft_of_itself_is_accepted(llama, said):
    """A folded draft proposes what its source would: of itself every token is accepted."""
    asked = {"method": "draft_model", "model": str(llama / "folded"), "num_speculative_tokens": 3}
    with engine(llama / "source", speculative_config=asked, disable_log_stats=False) as llm:
        assert tokens(say(llm)) == said
        counted = {
            each.name: each.value for each in llm.get_metrics() if "spec_decode" in each.name and hasattr(each, "value")
        }
    proposed, accepted = (counted[f"vllm:spec_decode_num_{each}_tokens"] for each in ("draft", "accepted"))
    assert accepted >= 0.9 * proposed > 0


def test_drafts_from_the_prompt(llama, said):
    asked = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    assert tokens(answers(llama / "folded", speculative_config=asked, apart=True)) == said


@pytest.mark.parametrize(("placement", "eager"), [("host", True), ("disk", True), ("host", False), ("disk", False)])
def test_a_table_that_lies_elsewhere(llama, said, placement, eager):
    options = {"hf_overrides": {"prefold_placement": placement}, "enforce_eager": eager}
    assert tokens(answers(llama / "folded", **options)) == said


def test_a_placement_from_the_environment_on_two_ranks(llama, said, monkeypatch):
    monkeypatch.setenv("PREFOLD_PLACEMENT", "disk")
    assert tokens(answers(llama / "folded", ranks=2)) == said


def test_a_table_on_the_host_of_two_ranks_is_cut(llama, said):
    with engine(llama / "folded", ranks=2, hf_overrides={"prefold_placement": "host"}) as llm:
        assert tokens(say(llm)) == said
