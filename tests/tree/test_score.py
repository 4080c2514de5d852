"""The likelihood of continuations: as each has it alone."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefold.tree import CacheError, Scored, score
from prefold.tree.errors import WrongAttention
from prefold.tree.prompts import score as module
from tests.conftest import VOCABULARY, tokens
from tests.tree.trees import KINDS, NAME, alone, model_of

_PROMPT = tokens(1, 12)[0].tolist()


def _continuations(count: int, longest: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, longest + 1, (count,), generator=made).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=made).tolist() for length in lengths]


def _assert_alone(model: PreTrainedModel, prompt: list[int], scored: list[Scored]) -> None:
    """Assert that every log-probability is within 1e-5 of the largest logit of what it is alone."""
    for each in scored:
        logits = alone(model, prompt + each.tokens)[len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(each.tokens)[:, None])[:, 0]
        assert (torch.tensor(each.log_probs) - expected).abs().max() <= 1e-5 * logits.abs().max()
        assert each.log_likelihood == pytest.approx(float(expected.double().sum()), rel=1e-5)
        assert each.is_greedy == bool((logits.argmax(-1) == torch.tensor(each.tokens)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_continuation_is_as_likely_as_alone(kind: str) -> None:
    model = model_of(kind)
    model.set_attn_implementation(NAME)
    continuations = _continuations(9, 6)
    scored = score(model, _PROMPT, continuations)
    assert [each.tokens for each in scored] == continuations
    _assert_alone(model, _PROMPT, scored)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    model = model_of("grouped heads")
    model.set_attn_implementation(NAME)
    return model


def test_the_prompt_is_read_once(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    watch: Any = llama.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(int(args[0].numel())), with_kwargs=True
    )
    score(llama, _PROMPT, [[5], [6], [7]])
    assert read == [12]  # a continuation of one token runs nothing
    score(llama, torch.tensor([_PROMPT]), [[5, 6], [6, 7], [7, 8, 9]])
    watch.remove()
    assert read[1:] == [12, 3 * 2]


def test_more_than_memory_should_hold_is_scored_in_parts(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    continuations = _continuations(12, 5)
    whole = score(llama, _PROMPT, continuations)
    monkeypatch.setattr(module, "_LOGITS", 4 * VOCABULARY)
    parts = score(llama, _PROMPT, continuations)
    for one, other in zip(whole, parts, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)


def test_a_greedy_continuation_is_greedy(llama: PreTrainedModel) -> None:
    found = llama.generate(torch.tensor([_PROMPT]), max_new_tokens=5, pad_token_id=0, eos_token_id=None)
    (one, other) = score(llama, _PROMPT, [found[0, 12:].tolist(), [3, 4]])
    assert (one.is_greedy, other.is_greedy) == (True, False)


@pytest.mark.parametrize(("prompt", "continuations"), [([], [[3]]), ([3], [[3], []])])
def test_nothing_has_no_likelihood(llama: PreTrainedModel, prompt: list[int], continuations: list[list[int]]) -> None:
    with pytest.raises(CacheError, match="at least one token each"):
        score(llama, prompt, continuations)


def test_no_continuations_have_none(llama: PreTrainedModel) -> None:
    assert score(llama, _PROMPT, []) == []


def test_a_model_that_attends_otherwise_is_refused() -> None:
    with pytest.raises(WrongAttention):
        score(model_of("grouped heads"), _PROMPT, [[3]])
