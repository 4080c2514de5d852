"""Folds whose first norm sees a sum of look-ups: positions, token types, padding, caches, threads, copies."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from prefold.runtime import FoldedInputError
from tests.conftest import load, tokens
from tests.runtime.pairs import Interruption, Pair, cached_steps, interrupted, left_padded, logits, make_pair

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(params=["gpt2", "bert"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def assert_same(pair: Pair, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    """Demand that both say the same of the same inputs; returns what they say."""
    said = [model(input_ids=ids, **given).logits for model in (pair.source, pair.folded)]
    torch.testing.assert_close(said[1], said[0], **CLOSE)
    return said[0]


def kinds(pair: Pair, kind: str) -> list[torch.nn.Module]:
    return [module for module in pair.folded.modules() if type(module).__name__ == kind]


def test_the_first_layer_is_made_of_sums(gpt2: Pair, bert: Pair) -> None:
    assert [len(kinds(gpt2, kind)) for kind in ("SumColumn", "NormScale", "Column")] == [1, 1, 0]
    assert [len(kinds(bert, kind)) for kind in ("SumColumn", "NormScale", "Column")] == [3, 1, 0]


def test_plain_tokens(pair: Pair) -> None:
    assert_same(pair, tokens())


def test_shifted_positions(gpt2: Pair) -> None:
    ids = tokens()
    plain = assert_same(gpt2, ids)
    shifted = assert_same(gpt2, ids, position_ids=torch.arange(7, 19)[None])
    each = assert_same(gpt2, ids, position_ids=torch.stack([torch.arange(12), torch.arange(90, 102)]))
    assert not torch.allclose(shifted, plain, **CLOSE)
    assert not torch.allclose(each[1], plain[1], **CLOSE)


def test_shifted_positions_of_an_encoder(bert: Pair) -> None:
    ids = tokens()
    assert not torch.allclose(
        assert_same(bert, ids, position_ids=torch.arange(5, 17)[None]), assert_same(bert, ids), **CLOSE
    )


def test_token_types(bert: Pair) -> None:
    ids = tokens()
    types = torch.zeros_like(ids)
    types[:, 6:] = 1
    assert not torch.allclose(assert_same(bert, ids, token_type_ids=types), assert_same(bert, ids), **CLOSE)


def test_token_types_that_are_tokens_themselves(gpt2: Pair) -> None:
    """GPT-2 looks types up among its tokens: the rows of both add up."""
    ids = tokens()
    types = torch.full_like(ids, 5)
    assert not torch.allclose(assert_same(gpt2, ids, token_type_ids=types), assert_same(gpt2, ids), **CLOSE)


def test_a_second_look_up_in_one_pass_of_a_pure_model_is_refused(tmp_path: Path) -> None:
    """Behind the norm of a pure model's fold, rows do not add up; saying something wrong would be worse."""
    pair, ids = make_pair(tmp_path, "gptj"), tokens()
    pair.source(input_ids=ids, token_type_ids=torch.full_like(ids, 5))
    with pytest.raises(FoldedInputError, match="second look-up in one pass"):
        pair.folded(input_ids=ids, token_type_ids=torch.full_like(ids, 5))
    torch.testing.assert_close(logits(pair.folded, ids), logits(pair.source, ids), **CLOSE)


def test_left_padded_batch(pair: Pair) -> None:
    ids, mask = left_padded()
    torch.testing.assert_close(logits(pair.folded, ids, mask), logits(pair.source, ids, mask), **CLOSE)


@pytest.mark.parametrize("padded", [False, True], ids=["one prompt", "left-padded batch"])
def test_cached_steps(gpt2: Pair, padded: bool) -> None:
    """A cached step has a position of its own: a row of the wrong one would be another token's neighbour."""
    ids, mask = left_padded() if padded else (tokens(1), torch.ones(1, 12, dtype=torch.long))
    (made, source), (again, folded) = (cached_steps(model, ids, mask) for model in (gpt2.source, gpt2.folded))
    assert torch.equal(again, made)
    torch.testing.assert_close(folded, source, **CLOSE)


def test_embeddings_instead_of_tokens_are_refused(pair: Pair) -> None:
    for model in (pair.folded, pair.folded.base_model):
        with pytest.raises(FoldedInputError, match="takes input_ids, not inputs_embeds"):
            model(inputs_embeds=torch.zeros(2, 12, 32))


def test_training_is_refused(pair: Pair) -> None:
    model = copy.deepcopy(pair.folded).train()
    with pytest.raises(FoldedInputError, match="cannot be trained"):
        model(input_ids=tokens())


def _row(model: Any) -> Any:
    (row,) = model.prefold_rows
    return row


def _is_empty(model: Any) -> bool:
    row = _row(model)
    return row.values is None and row.others is None and row.scales == ()


def test_nothing_outlives_a_pass(pair: Pair) -> None:
    logits(pair.folded, tokens())
    assert _is_empty(pair.folded)


def test_a_pass_after_an_interrupted_one_is_right(pair: Pair) -> None:
    """What its look-ups and its norm had left behind is dropped."""
    with interrupted(kinds(pair, "SumColumn")[0]), pytest.raises(Interruption):
        logits(pair.folded, tokens(seed=1))
    assert not _is_empty(pair.folded)
    assert_same(pair, tokens(3, 7))
    assert _is_empty(pair.folded)


def test_threads_do_not_share_rows_nor_scales(pair: Pair) -> None:
    prompts = [tokens(length=6 + seed % 5, seed=seed) for seed in range(60)]
    expected = [logits(pair.folded, ids) for ids in prompts]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda ids: logits(pair.folded, ids), prompts))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_independent(pair: Pair, copied: Any) -> None:
    ids = tokens()
    expected = logits(pair.folded, ids)
    twin = copied(pair.folded)
    assert _row(twin) is not _row(pair.folded)
    assert torch.equal(logits(twin, ids), expected)
    for name, parameter in twin.named_parameters():
        if ".prefold." in name:
            parameter.data.add_(1)
    assert not torch.allclose(logits(twin, ids), expected, **CLOSE)
    assert torch.equal(logits(pair.folded, ids), expected)


def test_saved_again_it_says_the_same(pair: Pair, tmp_path: Path) -> None:
    pair.folded.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    before, after = pair.folded.state_dict(), again.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], values) for name, values in before.items())
    ids = tokens()
    assert torch.equal(logits(again, ids), logits(pair.folded, ids))


def test_names_of_tensors(gpt2: Pair, bert: Pair) -> None:
    """What is new has the name of the look-up with ``prefold`` behind it, or is a bias with a row for each norm."""
    fold, state = gpt2.folded.config.prefold["folds"][0], gpt2.folded.state_dict()
    assert state["transformer.wpe.prefold.weight"].shape == (128, 96)
    assert state["transformer.h.0.attn.c_attn.bias"].shape == (1, 96)
    assert state["transformer.wpe.weight"].shape == (128, 32)
    assert state[fold["table"]["module"] + ".weight"].shape == (97, 32 + 96)
    assert not [
        name for name in state if name.startswith(("transformer.h.0.ln_1.", "transformer.h.0.attn.c_attn.weight"))
    ]
    new = bert.folded.state_dict().keys() - bert.source.state_dict().keys()
    assert new == {f"bert.embeddings.{part}_embeddings.prefold.weight" for part in ("position", "token_type")}
    gone = bert.source.state_dict().keys() - bert.folded.state_dict().keys()
    assert gone == {f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")}


def test_biases_and_tables_load_without_a_missing_key(pair: Pair) -> None:
    kind = AutoModelForMaskedLM if pair.source.config.model_type == "bert" else AutoModelForCausalLM
    _, info = kind.from_pretrained(pair.folded_folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values())


def test_the_base_model_loads_by_itself(pair: Pair) -> None:
    folders = (pair.source_folder, pair.folded_folder)
    models = [AutoModel.from_pretrained(each, trust_remote_code=True).eval() for each in folders]
    source, folded = (model(input_ids=tokens()).last_hidden_state for model in models)
    torch.testing.assert_close(folded, source, **CLOSE)


def test_another_head_is_told_what_it_was_folded_as(bert: Pair) -> None:
    import prefold.runtime  # noqa: F401

    with pytest.raises(ValueError, match="folded as BertModel, BertForMaskedLM"):
        AutoModelForSequenceClassification.from_pretrained(bert.folded_folder)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_whole_model_is_one_graph(name: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(pair.folded), fullgraph=True, backend="aot_eager")
    for ids in (tokens(), tokens(seed=1)):
        torch.testing.assert_close(logits(compiled, ids), logits(pair.source, ids), **CLOSE)
        assert _is_empty(compiled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_is_no_further_from_the_truth_than_its_source(dtype: torch.dtype, tmp_path: Path) -> None:
    pair, ids = make_pair(tmp_path, "gpt2", dtype), tokens(16, 48)
    truth = logits(copy.deepcopy(pair.source).double(), ids)
    source, folded = (
        (logits(model, ids).double() - truth).square().mean().sqrt() for model in (pair.source, pair.folded)
    )
    assert 0 < folded <= 1.05 * source
