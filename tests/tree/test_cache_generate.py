"""n-best sampling and beam search through transformers' own ``generate``."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefold.tree import TreeCache, prefill
from tests.conftest import tokens
from tests.runtime.pairs import left_padded, make_pair
from tests.tree.trees import KINDS, NAME, model_of

_WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "num_return_sequences": 4},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 4, "do_sample": True},
    "greedy": {"num_return_sequences": 1},
}
_BRANCHES = {"greedy": 1}


def _generate(model: PreTrainedModel, cache: TreeCache | None, ids: torch.Tensor, mask: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    asked = {"max_new_tokens": 24, "pad_token_id": 0, "repetition_penalty": 1.5, "past_key_values": cache} | options
    asked |= {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, **asked)


def _assert_equal(found: Any, expected: Any) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def _expected(model: PreTrainedModel, ids: torch.Tensor, mask: Any, **options: Any) -> Any:
    model.set_attn_implementation("eager")
    expected = _generate(model, None, ids, mask, **options)
    model.set_attn_implementation(NAME)
    return expected


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_generate_says_what_it_says_without_the_tree(kind: str, way: str) -> None:
    model, (ids, mask) = model_of(kind), left_padded()
    expected = _expected(model, ids, mask, **_WAYS[way])
    cache = TreeCache(branches=_BRANCHES.get(way, 4))
    _assert_equal(_generate(model, cache, ids, mask, **_WAYS[way]), expected)


@pytest.mark.parametrize("way", ["sampling", "beams"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_may_be_read_once_before(way: str, *, padded: bool) -> None:
    model, (ids, mask) = model_of("grouped heads"), left_padded() if padded else (tokens(2), None)
    expected = _expected(model, ids, mask, **_WAYS[way])
    cache = prefill(model, ids, mask, branches=4)
    stored = cache.memory().tokens
    assert stored == (int(mask.sum()) if padded else ids.numel()) - len(ids)
    _assert_equal(_generate(model, cache, ids, mask, **_WAYS[way]), expected)


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_prompts_may_be_read_before(length: int) -> None:
    model, ids = model_of("grouped heads"), tokens(1, length)
    expected = _expected(model, ids, None, **_WAYS["sampling"])
    _assert_equal(_generate(model, prefill(model, ids, branches=4), ids, None, **_WAYS["sampling"]), expected)


@pytest.mark.parametrize("kind", ["grouped heads", "windows in some layers"])
def test_a_prompt_may_be_read_in_pieces(kind: str) -> None:
    model, (ids, mask) = model_of(kind), left_padded()
    expected = _expected(model, ids, mask, **_WAYS["sampling"])
    cache = TreeCache(branches=4)
    found = _generate(model, cache, ids, mask, **_WAYS["sampling"], prefill_chunk_size=5)
    _assert_equal(found, expected)
    assert {leaf.path()[0].length for leaf in cache.live.rows} == set(mask.sum(1).tolist())


def test_the_prompt_is_stored_and_read_once() -> None:
    model, ids = model_of("grouped heads"), tokens(1, 60)
    model.set_attn_implementation(NAME)
    cache = TreeCache(branches=8)
    _generate(model, cache, ids, None, do_sample=True, num_return_sequences=8, min_new_tokens=24)
    of_token = sum(store.token_bytes for store in cache.stores.values())
    assert cache.memory().tokens <= 60 + 8 * 23
    assert cache.reads[-1] == cache.memory().tokens * of_token


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_a_tree_the_attention_is_as_any_other(kind: str) -> None:
    model, (ids, mask) = model_of(kind), left_padded()
    expected = _expected(model, ids, mask, max_new_tokens=8)
    _assert_equal(_generate(model, None, ids, mask, max_new_tokens=8), expected)
    model.set_attn_implementation("eager")
    plain = model(ids, attention_mask=mask).logits[mask == 1]
    model.set_attn_implementation(NAME)
    assert (model(ids, attention_mask=mask).logits[mask == 1] - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_a_folded_model_generates_as_it_did(tmp_path: Any, model_type: str) -> None:
    folded, (ids, mask) = make_pair(tmp_path, model_type).folded, left_padded()
    for way in ("sampling", "beams"):
        expected = _expected(folded, ids, mask, **_WAYS[way])
        _assert_equal(_generate(folded, TreeCache(branches=4), ids, mask, **_WAYS[way]), expected)


@torch.no_grad()
def test_half_precision_is_as_near_as_without_the_tree() -> None:
    model = model_of("grouped heads").to(torch.bfloat16)
    ids = tokens(1, 40).repeat(4, 1)
    truth = model_of("grouped heads")(ids).logits[0, -1]
    model.set_attn_implementation("sdpa")
    plain = model(ids).logits[0, -1]
    model.set_attn_implementation(NAME)
    cache = TreeCache(branches=4)
    model(ids[:, :-1], past_key_values=cache)
    found = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    assert found.dtype == torch.bfloat16
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max()
