"""Prompts with common beginnings generate what they do by themselves, and each beginning is read once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from prefold.tree import CacheError, prefill, share_prefixes
from prefold.tree.prompts import prefixes
from prefold.tree.prompts.prefixes import Segment, make_prompt_tree
from tests.conftest import tokens
from tests.tree.trees import KINDS, NAME, model_of

_TEXT = tokens(1, 12)[0].tolist()
_PROMPTS = [
    [*_TEXT, 5, 6],
    [*_TEXT, 5, 7, 8, 9],
    [*_TEXT[:6], 4],
    [*_TEXT, 5, 6],
    _TEXT[:4],
    [9, 8, 7],
    [50],
    [*_TEXT, 5],
]  # fmt: skip
_WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


def _plain(model: PreTrainedModel, prompts: list[list[int]], **options: Any) -> torch.Tensor:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    model.set_attn_implementation("eager")
    torch.manual_seed(0)
    expected = model.generate(ids, attention_mask=mask, **options)
    model.set_attn_implementation(NAME)
    torch.manual_seed(0)
    return expected


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_generate_what_they_do_alone(kind: str, way: str) -> None:
    model = model_of(kind)
    options = {"max_new_tokens": 8, "pad_token_id": 0, "repetition_penalty": 1.5} | _WAYS[way]
    expected = _plain(model, _PROMPTS, **options)
    assert torch.equal(share_prefixes(model, _PROMPTS, **options), expected)


def test_a_batch_is_read_with_more_padding_than_it_needs() -> None:
    model, options = model_of("grouped heads"), {"max_new_tokens": 8, "pad_token_id": 0, "num_return_sequences": 2}
    ids = torch.tensor([[0] * (20 - len(each)) + each for each in _PROMPTS])
    mask = (ids != 0).long()
    torch.manual_seed(0)
    expected = model.generate(ids, attention_mask=mask, do_sample=True, **options)
    model.set_attn_implementation(NAME)
    cache = prefill(model, ids, mask, branches=2)
    torch.manual_seed(0)
    found = model.generate(ids, attention_mask=mask, past_key_values=cache, do_sample=True, **options)
    assert torch.equal(found, expected)


def test_every_segment_is_stored_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("grouped heads")
    model.set_attn_implementation(NAME)
    computed: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: computed.append(_given(args, kwargs)), with_kwargs=True)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0, "return_dict_in_generate": True}
    prompts = [[*_TEXT, branch, *range(20, 29)] for branch in range(3, 11)]
    cache = share_prefixes(model, prompts, **options).past_key_values
    of_token = sum(store.token_bytes for store in cache.stores.values())
    assert computed == [12, 8 * 9, *[8] * 5]
    assert cache.memory().tokens == 12 + 8 * (10 + 4)
    assert [each // of_token for each in cache.reads[-4:]] == [12 + 8 * (10 + step) for step in range(1, 5)]


def _given(args: Any, kwargs: Any) -> int:
    return int((args[0] if args else kwargs["input_ids"]).numel())


@pytest.mark.parametrize("prompts", [[[5], [6], [5]], [[5]], [torch.tensor([5, 6]), torch.tensor([5, 7])]])
def test_the_shortest_prompts_may_be_shared(prompts: list[Any]) -> None:
    model, options = model_of("grouped heads"), {"max_new_tokens": 5, "pad_token_id": 0}
    expected = _plain(model, [torch.as_tensor(each).tolist() for each in prompts], **options)
    assert torch.equal(share_prefixes(model, prompts, **options), expected)


def test_many_prompts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = model_of("own heads"), {"max_new_tokens": 5, "pad_token_id": 0}
    expected = _plain(model, _PROMPTS, **options)
    monkeypatch.setattr(prefixes, "_TOKENS", 2)
    assert torch.equal(share_prefixes(model, _PROMPTS, **options), expected)


@pytest.mark.parametrize("prompts", [[], [[3], []]])
def test_what_is_no_prompt_is_refused(prompts: list[list[int]]) -> None:
    model = model_of("grouped heads")
    model.set_attn_implementation(NAME)
    with pytest.raises(CacheError, match="one token at least"):
        share_prefixes(model, prompts)


def _texts(segment: Segment, before: list[int], found: dict[int, list[int]]) -> int:
    """Collect every prompt's text; returns the tokens of all segments."""
    text = before + segment.tokens
    found |= dict.fromkeys(segment.prompts, text)
    assert all(first == child.tokens[0] for first, child in segment.children.items())
    return len(segment.tokens) + sum(_texts(child, text, found) for child in segment.children.values())


@given(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=12))
@settings(max_examples=100, derandomize=True)
def test_a_tree_of_prompts_has_each_beginning_once(prompts: list[list[int]]) -> None:
    found: dict[int, list[int]] = {}
    tokens_of_all = _texts(make_prompt_tree(prompts), [], found)
    assert [found[number] for number in range(len(prompts))] == prompts
    beginnings = {tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}
    assert tokens_of_all == len(beginnings)
