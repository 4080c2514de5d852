"""Trees that grow as a policy says."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from prefold.tree import HOLD, Branch, CacheError, GeneratedTree, sampler, tree_generate
from prefold.tree.errors import OutOfPages, WrongAttention
from tests.conftest import random_model, small_config, tokens
from tests.tree.trees import NAME, alone, assert_close, model_of


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return _ready(model_of("grouped heads"))


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation(NAME)
    return model


class _Recorder:
    """A policy that writes down what it was shown, and does as another says."""

    def __init__(self, decide: Any) -> None:
        self.seen: list[tuple[list[int], torch.Tensor]] = []
        self._decide = decide

    def __call__(self, branches: Sequence[Branch], logits: torch.Tensor) -> list[Any]:
        self.seen += [(branch.text(), found.clone()) for branch, found in zip(branches, logits, strict=True)]
        return self._decide(branches, logits)


def _assert_exact(model: PreTrainedModel, recorder: _Recorder) -> None:
    longest = {tuple(ids): found for ids, found in recorder.seen}
    for ids, found in longest.items():
        assert_close(found, alone(model, list(ids))[-1])
    _ready(model)


def _greedy(branches: Sequence[Branch], logits: torch.Tensor) -> list[list[int]]:
    return [[int(each.argmax())] for each in logits]


def _top(count: int, depth: int, length: int) -> Any:
    """Branch into the best tokens after every ``length`` tokens, so many times; then end."""

    def decide(branches: Sequence[Branch], logits: torch.Tensor) -> list[list[int]]:
        said = []
        for branch, each in zip(branches, logits, strict=True):
            if branch.parent is not None and len(branch.tokens) < length:
                said.append(each.topk(1).indices.tolist())
            else:
                said.append([] if branch.depth == depth else each.topk(count).indices.tolist())
        return said

    return decide


def test_a_greedy_branch_is_greedy_text(llama: PreTrainedModel) -> None:
    ids = tokens(1, 9)
    grown = tree_generate(llama, ids, _greedy, max_steps=12)
    llama.set_attn_implementation("sdpa")
    expected = llama.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None)
    _ready(llama)
    assert [branch.text() for branch in grown.leaves()] == expected.tolist()
    assert grown.steps == 12


@pytest.mark.parametrize("kind", ["own heads", "grouped heads", "soft caps and windows", "trained positions"])
def test_every_branch_sees_the_logits_that_it_has_alone(kind: str) -> None:
    model, recorder = _ready(model_of(kind)), _Recorder(_top(3, depth=3, length=3))
    grown = tree_generate(model, tokens(1, 9), recorder)
    assert len(grown.branches) == 1 + 3 + 9 + 27
    assert len(grown.leaves()) == 27
    _assert_exact(model, recorder)


def test_siblings_wait_and_only_the_best_goes_on(llama: PreTrainedModel) -> None:
    """As a tree of thoughts: ten thoughts of unequal length are judged when all are there, and one is expanded."""

    def decide(branches: Sequence[Branch], logits: torch.Tensor) -> list[Any]:
        running = [len(branch.tokens) < 2 + branch.number % 3 for branch in branches]
        if branches[0].parent is None:
            return [logits[0].topk(10).indices.tolist()]
        if any(running):
            pairs = zip(running, logits, strict=True)
            return [[int(each.argmax())] if runs else HOLD for runs, each in pairs]
        best = max(range(len(branches)), key=lambda at: float(logits[at].max()))
        over = branches[best].depth == 3
        return [logits[at].topk(10).indices.tolist() if at == best and not over else [] for at in range(len(branches))]

    recorder = _Recorder(decide)
    grown = tree_generate(llama, tokens(1, 9), recorder)
    assert [branch.depth for branch in grown.branches] == [0] + [1] * 10 + [2] * 10 + [3] * 10
    assert not any(branch.is_held for branch in grown.branches)
    assert grown.cache.memory().pages == 0
    _assert_exact(llama, recorder)


@given(st.lists(st.lists(st.integers(-1, 3), min_size=8, max_size=8), min_size=1, max_size=10))
@settings(max_examples=20, derandomize=True)
def test_any_policy_grows_an_exact_tree(script: list[list[int]]) -> None:
    """-1 holds a branch, 0 ends it, 1 continues it, more branch; at most eight are kept."""
    model, turns = _ready(_shared_model()), iter(script)

    def decide(branches: Sequence[Branch], logits: torch.Tensor) -> list[Any]:
        says = next(turns, [0] * 8)
        wanted = [says[at % 8] if at < 8 else 0 for at in range(len(branches))]
        return [
            HOLD if want < 0 else each.topk(want).indices.tolist() for want, each in zip(wanted, logits, strict=True)
        ]

    recorder = _Recorder(decide)
    tree_generate(model, tokens(1, 5), recorder, max_steps=10)
    _assert_exact(model, recorder)


_MODELS: list[PreTrainedModel] = []


def _shared_model() -> PreTrainedModel:
    if not _MODELS:
        _MODELS.append(model_of("windows in some layers"))
    return _MODELS[0]


def test_births_and_ends_are_steps(llama: PreTrainedModel) -> None:
    grown = tree_generate(llama, tokens(1, 4), _top(2, depth=2, length=3))
    assert [(branch.birth, branch.end) for branch in grown.branches] == [(0, 0)] + [(1, 3)] * 2 + [(4, 6)] * 4


def test_the_prompt_is_read_once_for_all_branches(llama: PreTrainedModel) -> None:
    grown: GeneratedTree = tree_generate(llama, tokens(1, 40), _top(8, depth=1, length=5))
    of_token = sum(store.token_bytes for store in grown.cache.stores.values())
    assert [each // of_token for each in grown.cache.reads[1:]] == [40 + 8 * step for step in range(1, 6)]


@pytest.mark.parametrize("prompt", [[], torch.zeros(2, 3, dtype=torch.long)])
def test_what_is_no_prompt_is_refused(llama: PreTrainedModel, prompt: Any) -> None:
    with pytest.raises(CacheError, match="one prompt of at least one token"):
        tree_generate(llama, prompt, _greedy)


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ([], "0 of 1 branches"),
        ([[], []], "2 of 1 branches"),
        (None, "no list with tokens"),
        ([3], "no list with tokens"),
        ([[0.5]], "no list with tokens"),
        ([["x"]], "no list with tokens"),
        ([[[]]], "a list without tokens"),
        ([[97]], r"appends \[97\], of a vocabulary of 97"),
        ([[[3, -1]]], r"appends \[3, -1\]"),
    ],
)
def test_a_policy_that_returns_no_decisions_is_refused(llama: PreTrainedModel, returned: Any, why: str) -> None:
    with pytest.raises(CacheError, match=why) as refused:
        tree_generate(llama, tokens(1), lambda *_: returned)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["own heads", "grouped heads", "windows in some layers"])
def test_several_tokens_are_appended_at_once(kind: str) -> None:
    model = _ready(model_of(kind))
    script: list[Any] = [[[[5, 6, 7], 8, [9, 10]]], [[[11, 12]], HOLD, [13, [14, 15, 16]]], [[3], [4], [], [5]]]

    def decide(branches: Sequence[Branch], logits: torch.Tensor) -> list[Any]:
        said = script.pop(0) if script else []
        return [said[at] if at < len(said) else [] for at in range(len(branches))]

    recorder = _Recorder(decide)
    grown = tree_generate(model, tokens(1, 9), recorder)
    texts = [branch.text()[9:] for branch in grown.branches]
    assert [5, 6, 7, 11, 12, 3] in texts
    assert [9, 10, 14, 15, 16] in texts
    assert grown.steps == 3
    _assert_exact(model, recorder)
    for branch in grown.branches[1:]:
        _assert_likely(model, branch)
    _ready(model)


def _assert_likely(model: PreTrainedModel, branch: Branch) -> None:
    text, count = branch.text(), len(branch.tokens)
    expected = alone(model, text)[-count - 1 : -1].log_softmax(-1).gather(1, torch.tensor(branch.tokens)[:, None])[:, 0]
    assert len(branch.log_probs) == count
    assert (torch.tensor(branch.log_probs) - expected).abs().max() <= 1e-4


def test_samples_end_and_have_their_likelihood(llama: PreTrainedModel) -> None:
    policy = sampler(12, 10, temperature=2.0, end=range(3, 20), seed=1)
    grown = tree_generate(llama, tokens(1, 9), policy)
    samples = [branch.tokens for branch in grown.leaves()]
    assert len(samples) == 12
    assert {len(each) for each in samples} >= {1, 10}
    assert all(each[-1] in range(3, 20) or len(each) == 10 for each in samples)
    assert not any(token in range(3, 20) for each in samples for token in each[:-1])
    for branch in grown.leaves():
        _assert_likely(llama, branch)
    _ready(llama)
    again = tree_generate(llama, tokens(1, 9), sampler(12, 10, temperature=2.0, end=range(3, 20), seed=1))
    assert [branch.tokens for branch in again.leaves()] == samples


def test_a_sampler_draws_from_the_nucleus_alone(llama: PreTrainedModel) -> None:
    seen: list[int] = []
    policy = sampler(200, 1, temperature=1.0, top_p=0.6)
    grown = tree_generate(llama, tokens(1, 9), policy)
    shares = alone(llama, tokens(1, 9)[0].tolist())[-1].softmax(-1).sort(descending=True)
    nucleus = int((shares.values.cumsum(0) < 0.6).sum()) + 1
    seen = [branch.tokens[0] for branch in grown.leaves()]
    assert set(seen) <= set(shares.indices[:nucleus].tolist())
    assert len(set(seen)) > 1 or nucleus == 1
    _ready(llama)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 2}, {"branches": 0}, {"max_new_tokens": 0}])
def test_a_sampler_that_cannot_draw_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match="sampler"):
        sampler(**({"branches": 2, "max_new_tokens": 2} | options))


def test_pages_that_run_out_are_said(llama: PreTrainedModel) -> None:
    with pytest.raises(OutOfPages, match="max_pages"):
        tree_generate(llama, tokens(1), _top(4, depth=4, length=1), max_pages=5)


def test_a_model_that_attends_otherwise_is_refused() -> None:
    with pytest.raises(WrongAttention, match="attends by 'sdpa'"):
        tree_generate(random_model(small_config("llama")), tokens(1), _greedy)
