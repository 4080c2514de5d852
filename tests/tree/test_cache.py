"""The cache: what it stores once, frees, counts and refuses."""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from prefold.tree import CacheError, TreeCache, prefill
from prefold.tree.errors import NoAttention, OutOfPages, PrunedSegment, UnequalRows, WrongAttention
from tests.conftest import random_model, small_config, tokens
from tests.tree.trees import NAME, Grove, model_of


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("grouped heads")


def _grown(model: PreTrainedModel, **options: Any) -> Grove:
    grove = Grove(model, seed=0, **options)
    grove.plant([10])
    return grove


def _token_bytes(model: PreTrainedModel) -> int:
    config = model.config
    return 2 * config.num_key_value_heads * config.head_dim * 4 * config.num_hidden_layers


def test_counting_needs_no_torch() -> None:
    code = "import sys, prefold.tree; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_branching_copies_nothing(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    before = grove.cache.memory()
    grove.choose([0] * 16)
    assert grove.cache.memory() == before
    grove.grow(1)
    assert grove.cache.memory().tokens == 10 + 16


def test_pruning_frees_pages(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    grove.choose([0] * 4)
    grove.grow(20)
    assert grove.cache.memory().pages == 1 + 4 * 2
    grove.choose([0, 3])
    assert grove.cache.memory().pages == 1 + 2 * 2
    assert grove.cache.memory().tokens == 10 + 2 * 20
    grove.assert_exact()


def test_freed_pages_are_used_again(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    held = []
    for _ in range(5):
        grove.choose([0] * 6)
        grove.grow(16)
        held.append(grove.cache.memory().bytes)
    assert held[-1] <= 20 * 16 * _token_bytes(llama)  # of 31 pages that there were
    grove.assert_exact()


def test_memory_of_which_nothing_is_used_is_given_back(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    name = grove.cache.hold(0)
    before = grove.cache.memory().bytes
    grove.choose([0] * 6)
    grove.grow(40)
    assert grove.cache.memory().bytes > 10 * before
    grove.cache.branch([name])
    with torch.no_grad():
        llama(tokens(1, 1), past_key_values=grove.cache)
    assert grove.cache.memory().bytes == grove.cache.memory().used_bytes


def test_a_branch_that_is_alone_joins_what_it_came_from(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    for _ in range(8):
        grove.choose([0, 0, 0])
        grove.grow(1)
    assert [len(leaf.path()) for leaf in grove.cache.live.rows] == [2, 2, 2]
    grove.assert_exact()


def test_what_is_held_outlives_its_rows(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    name, branch = grove.cache.hold(0), grove.rows[0].copy()
    grove.grow(3)
    grove.ended, grove.rows = grove.rows, [branch.copy(), branch.copy()]
    grove.cache.branch([name, name])
    grove.grow(2)
    grove.assert_exact()


def test_reads_are_each_segment_once_in_each_layer(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    grove.choose([0, 0, 0])
    grove.grow(1)
    grove.choose([0, 1, 1, 2])
    grove.grow(1)
    of_token = _token_bytes(llama)
    assert grove.cache.reads[-2:] == [(10 + 3) * of_token, (10 + 3 + 4) * of_token]


def test_positions_follow_the_path(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    name = grove.cache.hold(0)
    grove.grow(3)
    grove.cache.branch([name, grove.cache.hold(0)])
    assert grove.cache.position_ids(2).tolist() == [[10, 11], [13, 14]]
    assert grove.cache.attention_mask(1).sum(1).tolist() == [11, 14]


@torch.no_grad()
def test_every_layer_is_told_of_as_many_columns(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told, update = list[int](), TreeCache.update

    def watched(*args: Any, **kwargs: Any) -> Any:
        made = update(*args, **kwargs)
        told.extend(each.shape[2] for each in made)
        return made

    monkeypatch.setattr(TreeCache, "update", watched)
    cache = TreeCache()
    for ids in (tokens(1)[:, :5], tokens(1)[:, :1]):
        llama(ids, past_key_values=cache)
    each_pass = 2 * llama.config.num_hidden_layers
    assert told == [5] * each_pass + [6] * each_pass


def test_pages_run_out(llama: PreTrainedModel) -> None:
    grove = _grown(llama, max_pages=3)
    grove.choose([0, 0, 0])
    with pytest.raises(OutOfPages, match=r"1 of 3 are taken \(max_pages\)|2 of 3|3 of 3"):
        grove.grow(1)


def test_a_limit_that_is_kept_to_is_enough(llama: PreTrainedModel) -> None:
    grove = _grown(llama, max_pages=4)
    grove.choose([0, 0, 0])
    grove.grow(16)
    assert grove.cache.memory().pages == 4
    grove.assert_exact()


@pytest.mark.parametrize("use", ["branch", "prune"])
def test_a_branch_from_a_pruned_segment_is_refused(llama: PreTrainedModel, use: str) -> None:
    cache = _grown(llama).cache
    name = cache.hold(0)
    cache.prune(name)
    with pytest.raises(PrunedSegment, match="segment 0 was pruned"):
        cache.branch([name]) if use == "branch" else cache.prune(name)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [(kind, how) for kind in ("own heads", "grouped heads") for how in ("eager", "sdpa")]
    + [("soft caps and windows", "eager")],
)
def test_another_attention_implementation_is_refused(kind: str, implementation: str) -> None:
    model = model_of(kind)
    model.set_attn_implementation(implementation)
    with pytest.raises(WrongAttention, match="attn_implementation='prefold_tree'"):
        model.generate(tokens(1), past_key_values=TreeCache(), max_new_tokens=2)
    with pytest.raises(WrongAttention, match="attn_implementation='prefold_tree'"):
        prefill(model, tokens(1))


@pytest.mark.parametrize("model_type", ["bloom", "gptj", "falcon", "mpt", "deepseek_v2"])
def test_a_model_that_attends_in_its_own_way_is_refused(model_type: str) -> None:
    model = random_model(small_config(model_type))
    model.set_attn_implementation(NAME)
    with pytest.raises(WrongAttention, match="AttentionInterface as they are"):
        model.generate(tokens(1), past_key_values=TreeCache(), max_new_tokens=2)


@pytest.mark.parametrize("model_type", ["jamba", "qwen3_5_text", "mamba", "mamba2"])
def test_a_model_that_keeps_other_states_is_refused(model_type: str) -> None:
    model = random_model(small_config(model_type))
    model.set_attn_implementation(NAME)
    with pytest.raises(NoAttention):
        prefill(model, tokens(1))


def test_what_a_tree_of_keys_and_values_cannot_do_is_refused() -> None:
    cache = TreeCache()
    for call in (partial(cache.get_conv_state, 0), partial(cache.crop, 1), cache.early_initialization):
        with pytest.raises(CacheError, match="TreeCache"):
            call()


@pytest.mark.parametrize(("model_type", "why"), [("bart", "cross-attention"), ("t5", "position_bias")])
def test_what_an_encoder_decoder_wants_is_refused(model_type: str, why: str) -> None:
    model = random_model(small_config(model_type))
    model.set_attn_implementation(NAME)
    with pytest.raises(WrongAttention, match=why):
        model.generate(tokens(1), past_key_values=TreeCache(), max_new_tokens=2)


def test_a_decoder_beside_an_encoder_may_be_a_tree() -> None:
    model = random_model(small_config("bart"))
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    torch.manual_seed(0)
    expected = model.generate(tokens(2), **options)
    model.set_attn_implementation(NAME)
    torch.manual_seed(0)
    cache = EncoderDecoderCache(TreeCache(branches=3), DynamicCache())
    assert torch.equal(model.generate(tokens(2), past_key_values=cache, **options), expected)


def test_rows_that_are_not_the_same_prompt_are_refused(llama: PreTrainedModel) -> None:
    llama.set_attn_implementation(NAME)
    with pytest.raises(UnequalRows, match="branches=2"):
        llama.generate(tokens(4), past_key_values=TreeCache(branches=2), max_new_tokens=2)
    with pytest.raises(UnequalRows, match="3 rows are no multiple of branches=2"):
        llama.generate(tokens(3), past_key_values=TreeCache(branches=2), max_new_tokens=2)


def _misuse(cache: TreeCache, model: PreTrainedModel, what: str) -> None:
    """Go on from two rows, one of 10 tokens and one of 13, in a way that is wrong."""
    ids, mask = tokens(2, 1), cache.attention_mask(1)
    if what == "no positions":
        model(ids, attention_mask=mask, past_key_values=cache)
    elif what == "no mask":
        cache.takes_positions = True
        model(ids, position_ids=cache.position_ids(1), past_key_values=cache)
    elif what == "another mask":
        model(ids, attention_mask=torch.ones_like(mask), position_ids=cache.position_ids(1), past_key_values=cache)
    elif what == "a hole":
        mask[1, 4] = 0
        model(ids, attention_mask=mask, position_ids=cache.position_ids(1), past_key_values=cache)
    elif what == "a mask of one's own":
        model(ids, attention_mask=mask[:, None, None].bool(), position_ids=cache.position_ids(1), past_key_values=cache)
    else:
        model(tokens(3, 1), attention_mask=mask[[0, 1, 1]], past_key_values=cache)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("no positions", "rows end at different positions"),
        ("no mask", "need attention_mask"),
        ("another mask", "earlier tokens of the rows"),
        ("a hole", "hides other columns"),
        ("a mask of one's own", "a mask of the caller's own"),
        ("three rows", "2 rows and the call 3"),
    ],
)
@torch.no_grad()
def test_a_call_that_does_not_fit_the_rows_is_refused(llama: PreTrainedModel, what: str, why: str) -> None:
    grove = _grown(llama)
    name = grove.cache.hold(0)
    grove.grow(3)
    grove.cache.branch([name, grove.cache.hold(0)])
    grove.cache.takes_positions = what != "no positions"
    with pytest.raises(CacheError, match=why):
        _misuse(grove.cache, llama, what)


def test_a_row_that_is_not_there_is_refused(llama: PreTrainedModel) -> None:
    cache = _grown(llama).cache
    for use in (lambda: cache.hold(1), lambda: cache.reorder_cache([0, 1]), lambda: cache.reorder_cache([-1])):
        with pytest.raises(CacheError, match="of 1 rows"):
            use()


def test_the_rows_of_a_batch_may_be_chosen_as_transformers_does(llama: PreTrainedModel) -> None:
    grove = _grown(llama)
    grove.cache.batch_repeat_interleave(3)
    grove.rows = [grove.rows[0].copy() for _ in range(3)]
    grove.grow(2)
    grove.cache.batch_select_indices(torch.tensor([True, False, True]))
    grove.rows.pop(1)
    grove.cache.batch_select_indices(torch.tensor([1]))
    grove.rows.pop(0)
    grove.grow(1)
    grove.assert_exact()


def test_gradients_are_refused(llama: PreTrainedModel) -> None:
    llama.set_attn_implementation(NAME)
    with pytest.raises(CacheError, match="no_grad"):
        llama(tokens(1), past_key_values=TreeCache())


@torch.no_grad()
def test_a_pass_that_was_broken_off_is_no_cache(llama: PreTrainedModel) -> None:
    llama.set_attn_implementation(NAME)
    cache = TreeCache()
    handle = llama.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llama(tokens(1), past_key_values=cache)
    handle.remove()
    with pytest.raises(CacheError, match="broken off"):
        llama(tokens(1), past_key_values=cache)
    cache.reset()
    assert llama(tokens(1), past_key_values=cache).logits.isfinite().all()


@pytest.mark.parametrize("options", [{"branches": 0}, {"max_pages": 0}, {"page_tokens": 0}])
def test_a_cache_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(CacheError, match="at least 1"):
        TreeCache(**options)
