"""Tokens that are taken back, rows that ended early, and padding that lies inside: chats of several turns."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefold.tree import CacheError, TreeCache
from prefold.tree.errors import RaggedRows
from tests.conftest import VOCABULARY, tokens
from tests.tree.trees import KINDS, NAME, Grove, alone, assert_close, model_of

_ENDS = list(range(3, VOCABULARY, 4))  # many tokens that end a text, so that samples end at different times


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("grouped heads")


def _grown(model: PreTrainedModel, new: int = 7) -> Grove:
    grove = Grove(model, seed=0)
    grove.plant([10])
    grove.choose([0, 0, 0])
    grove.grow(new)
    return grove


def _shorten(grove: Grove, by: int) -> None:
    for branch in grove.rows:
        del branch.ids[-by:], branch.logits[-by:]


@pytest.mark.parametrize("by", [1, 7, 9])
@pytest.mark.parametrize("kind", ["grouped heads", "windows"])
def test_tokens_are_taken_back(kind: str, by: int) -> None:
    grove = _grown(model_of(kind))
    grove.cache.crop(-by)
    _shorten(grove, by)
    assert grove.cache.get_seq_length() == 17 - by
    assert grove.cache.memory().tokens == (10 + 3 * (7 - by) if by < 7 else 17 - by)
    grove.grow(3)
    grove.assert_exact()


def test_what_others_hold_is_not_taken_back(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    name, held = grove.cache.hold(1), grove.rows[1].copy()
    grove.cache.crop(-3)
    _shorten(grove, 3)
    grove.grow(2)
    grove.ended, grove.rows = grove.rows, [held]
    grove.cache.branch([name])
    assert grove.cache.get_seq_length() == 17
    grove.grow(2)
    grove.assert_exact()


@pytest.mark.parametrize("by", [1, -18])
def test_more_than_there_is_is_not_taken_back(llama: PreTrainedModel, by: int) -> None:
    with pytest.raises(CacheError, match="number of tokens to remove, below 0"):
        _grown(llama).cache.crop(by)


def test_nothing_is_taken_back_from_nothing() -> None:
    cache = TreeCache()
    cache.crop(0)
    assert cache.is_croppable


@pytest.mark.parametrize("kind", ["own heads", "grouped heads"])
def test_assisted_generation_takes_tokens_back(kind: str) -> None:
    model, ids = model_of(kind), tokens(1, 6).repeat(1, 4)
    options: dict[str, Any] = {"max_new_tokens": 20, "prompt_lookup_num_tokens": 4, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    model.set_attn_implementation(NAME)
    assert torch.equal(model.generate(ids, past_key_values=TreeCache(), **options), expected)


@pytest.mark.parametrize("kept", [3, 10, 13])
def test_the_first_tokens_of_a_row_are_held(llama: PreTrainedModel, kept: int) -> None:
    grove = _grown(llama)
    name = grove.cache.hold(2, tokens=kept)
    branch = grove.rows[2].copy()
    del branch.ids[kept:], branch.logits[kept:]
    grove.grow(1)  # the rows themselves go on
    grove.ended, grove.rows = grove.rows, [branch.copy(), branch.copy()]
    grove.cache.branch([name, name])
    assert grove.cache.get_seq_length() == grove.cache.memory().tokens == kept
    grove.grow(2)
    grove.assert_exact()


@pytest.mark.parametrize("kept", [0, 19])
def test_what_a_row_does_not_have_is_not_held(llama: PreTrainedModel, kept: int) -> None:
    with pytest.raises(CacheError, match="the row has 17 tokens"):
        _grown(llama).cache.hold(0, tokens=kept)


@torch.no_grad()
def test_what_is_held_is_not_what_its_rows_make_of_it(llama: PreTrainedModel) -> None:
    """Rows that say the same go on together, and apart from what is held."""
    llama.set_attn_implementation(NAME)
    cache = TreeCache(branches=2)
    llama(tokens(1).repeat(2, 1), past_key_values=cache)
    name, length = cache.hold(0), cache.get_seq_length()
    llama(tokens(1, 3).repeat(2, 1), past_key_values=cache)
    cache.branch([name, name])
    assert cache.get_seq_length() == cache.memory().tokens == length


def _until_end(row: list[int]) -> list[int]:
    """Return a row up to the first token that ends it, with that."""
    return next((row[: at + 1] for at, token in enumerate(row) if token in _ENDS), row)


def _sampled(model: PreTrainedModel, ids: torch.Tensor, seed: int, **options: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    asked = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": _ENDS} | options
    return model.generate(ids, do_sample=True, num_return_sequences=6, temperature=3.0, **asked)


@pytest.mark.parametrize("kind", ["grouped heads", "windows in some layers", "trained positions"])
def test_a_chat_goes_on_from_the_best_of_its_samples(kind: str) -> None:
    """The winner is the shortest answer of each turn, which ends before the others do."""
    model, cache, ids = model_of(kind), TreeCache(branches=6), tokens(1, 9)
    stored = 0
    for turn in range(4):
        model.set_attn_implementation("eager")
        expected = _sampled(model, ids, turn)
        model.set_attn_implementation(NAME)
        found = _sampled(model, ids, turn, past_key_values=cache)
        assert torch.equal(found, expected)
        answers = [_until_end(row) for row in found[:, ids.shape[1] :].tolist()]
        best = min(range(6), key=lambda row: len(answers[row]))
        stored += len(answers[best]) < max(map(len, answers))
        ids = torch.cat([ids, torch.tensor([answers[best]])], 1)
        name = cache.hold(best, tokens=ids.shape[1])
        cache.branch([name] * 6)
        cache.prune(name)
        assert cache.memory().tokens == cache.get_seq_length() <= ids.shape[1]
        ids = torch.cat([ids, tokens(1, 3)], 1)
    assert stored  # some winner did end before others


@pytest.mark.parametrize("kind", ["grouped heads", "own heads"])
def test_a_batch_of_chats_goes_on_behind_unequal_answers(kind: str) -> None:
    model, cache, ids = model_of(kind), TreeCache(), tokens(3, 8)
    mask = torch.ones_like(ids)
    for turn in range(3):
        options = {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": _ENDS, "attention_mask": mask}
        model.set_attn_implementation("eager")
        expected = model.generate(ids, **options)
        model.set_attn_implementation(NAME)
        found = model.generate(ids, past_key_values=cache, **options)
        assert torch.equal(found, expected)
        new = found[:, ids.shape[1] :]
        mask = torch.cat([mask, (new != 0).long(), torch.ones(3, 4, dtype=torch.long)], 1)
        ids = torch.cat([found, tokens(3, 4) + turn], 1)
    assert (mask == 0).any()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_lie_anywhere_in_new_columns(kind: str) -> None:
    model, made = model_of(kind), torch.Generator().manual_seed(1)
    model.set_attn_implementation(NAME)
    cache, rows = TreeCache(), [Row() for _ in range(3)]
    mask = torch.zeros(3, 0, dtype=torch.long)
    for columns in (9, 5, 1, 4):
        new = torch.rand(3, columns, generator=made) < 0.7
        new[torch.arange(3), torch.randint(columns, (3,), generator=made)] = True
        ids = torch.randint(3, VOCABULARY, new.shape, generator=made)
        mask = torch.cat([mask, new.long()], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -columns:]
        out = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        for row, each in enumerate(rows):
            each.ids += ids[row, new[row]].tolist()
            each.logits += list(out[row, new[row]])
        assert [leaf.end for leaf in cache.live.rows] == mask.sum(1).tolist()
    for each in rows:
        assert_close(torch.stack(each.logits), alone(model, each.ids))


class Row:
    """A row's tokens, and the logits that the cache gave at each."""

    def __init__(self) -> None:
        self.ids, self.logits = list[int](), list[torch.Tensor]()


@torch.no_grad()
def test_columns_that_later_tokens_saw_cannot_be_hidden(llama: PreTrainedModel) -> None:
    llama.set_attn_implementation(NAME)
    cache = TreeCache()
    llama(tokens(2, 6), past_key_values=cache)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 2] = 0
    with pytest.raises(RaggedRows, match="hides other columns than a row's last"):
        llama(tokens(2, 1), attention_mask=mask, past_key_values=cache)
