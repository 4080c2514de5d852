"""Discovery by experiment: what follows its token, what does not, what is read by nobody."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import EsmConfig, EsmForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from benchmarks.small import small_config as coverage_config
from prefold.convert import BrokenCheckpoint, FoldOptions, UnsupportedModel
from prefold.convert.experiment.discover import Discovery, discover
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.fold.check import check_fold_on_skeleton
from prefold.convert.fold.layout import EmbeddingSite, lay_out_row, read_cuts
from prefold.convert.model.inputs import Side
from prefold.convert.study import study_model
from tests.conftest import EXACT, PARALLEL, SHAPES, auto_class, small_config
from tests.convert.skeletons import skeleton


def found_in(model_type: str, **changes) -> Discovery:
    model, first_block = skeleton(small_config(model_type, **changes))
    return discover(model, Side(), first_block, experiment_tokens(model.config))[0]


def short(found: Discovery) -> tuple[list[str], list[str]]:
    return tuple([module.name.split(".0.")[-1] for module in part] for part in (found.columns, found.dropped))


# A serial block's projections; a parallel block's FFN too; a norm of queries and keys replaces its projection.
@pytest.mark.parametrize(
    ("model_type", "columns", "dropped"),
    [
        ("llama", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["input_layernorm"]),
        ("phi3", ["self_attn.qkv_proj"], ["input_layernorm"]),
        ("gpt_neox", ["attention.query_key_value", "mlp"], ["input_layernorm", "post_attention_layernorm"]),
        ("qwen3", ["self_attn.q_norm", "self_attn.k_norm", "self_attn.v_proj"],
         ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj"]),
        ("olmo2", ["self_attn.q_norm", "self_attn.k_norm", "self_attn.v_proj"],
         ["self_attn.q_proj", "self_attn.k_proj"]),
        ("mamba", ["mixer.in_proj"], ["norm"]),
    ],
)  # fmt: skip
def test_what_folds_and_what_is_dropped(model_type: str, columns: list[str], dropped: list[str]):
    found = short(found_in(model_type))
    assert found[0][1:] == columns
    assert found[1] == dropped


@pytest.mark.parametrize("size", [5, 7, 16])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "qwen3", "mamba", "gpt2", "bert", "bloom"])
def test_a_small_vocabulary_changes_nothing(model_type: str, size: int):
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0)
    assert short(found_in(model_type, vocab_size=size, **special)) == short(found_in(model_type))


@pytest.mark.parametrize("drops", [True, False])
def test_a_layer_that_masks_change_does_not_fold(drops: bool):
    """ESM scales all of a text by how many of its tokens are masks."""
    config = EsmConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        **{"vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 1, "mask_token_id": 4},
        token_dropout=drops,
        position_embedding_type="absolute",
    )
    if not drops:
        assert study_model(EsmForMaskedLM, config).cuts
        return
    with pytest.raises(UnsupportedModel, match="query returns something else for a token beside masks"):
        study_model(EsmForMaskedLM, config)


def test_a_norm_behind_the_embedding_becomes_the_residual():
    found = found_in("bloom")
    assert found.columns[0].name == "transformer.word_embeddings_layernorm"
    assert "transformer.word_embeddings" in [module.name for module in found.dropped]


def test_a_norm_that_is_also_the_residual_is_kept_as_a_column():
    found = found_in("bloom", apply_residual_connection_post_layernorm=True)
    assert found.columns[0].name == "transformer.h.0.input_layernorm"


@pytest.mark.parametrize("model_type", EXACT)
def test_only_a_parallel_blocks_ffn_can_be_merged(model_type: str):
    assert (found_in(model_type).mergeable is not None) == (model_type in PARALLEL)


def test_padding_that_a_block_zeroes_is_noticed():
    assert [column.masked for column in found_in("mamba").columns] == [False, True]
    assert not any(column.masked for column in found_in("llama").columns)


def test_routers_are_known_by_the_indices_that_they_return():
    assert found_in("mixtral").routers == ["model.layers.0.mlp.gate"]


class _SeesPosition(nn.Linear):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        places = torch.arange(hidden_states.shape[1], dtype=hidden_states.dtype)[None, :, None]
        return super().forward(hidden_states) * (1 + 0.01 * places)


class _SeesNeighbour(nn.Linear):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 0.01 * super().forward(hidden_states).roll(1, 1)


class _Constant(nn.Linear):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(super().forward(hidden_states))


# Who stays alive still reads the norm, which then becomes a column itself; a constant reads nothing.
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (_SeesPosition, ["input_layernorm", "q_proj", "v_proj"]),
        (_SeesNeighbour, ["input_layernorm", "q_proj", "v_proj"]),
        (_Constant, ["q_proj", "v_proj"]),
    ],
)
def test_a_module_that_sees_more_than_its_token_is_not_folded(kind: type[nn.Linear], columns: list[str]):
    """The experiment is seen to fail where it must: one projection is made to cheat by one per cent."""
    model, first_block = skeleton(small_config("llama"))
    attention = model.get_submodule(f"{first_block}.self_attn")
    cheat = kind(32, 16, bias=False)
    cheat.weight = attention.k_proj.weight
    attention.k_proj = cheat
    found = discover(model, Side(), first_block, experiment_tokens(model.config))[0]
    assert [column.name.rpartition(".")[2] for column in found.columns[1:]] == columns


def test_a_trial_that_says_something_else_is_refused():
    model, first_block = skeleton(small_config("llama"))
    ids = experiment_tokens(model.config)
    found = discover(model, Side(), first_block, ids)[0]
    found.columns[1].rows.mul_(1.01)
    with pytest.raises(UnsupportedModel, match="says something else"):
        check_fold_on_skeleton(
            model,
            first_block,
            lay_out_row(found, EmbeddingSite(Side(), "model.embed_tokens", None, 97, [""], unreachable=[])),
            found,
            ids,
        )


@pytest.mark.parametrize(
    "config",
    [{}, {"prefold": 1}, {"prefold": {}}, {"prefold": {"folds": 3}}]
    + [{"prefold": {"folds": [fold]}} for fold in (None, {}, {"table": {}}, {"table": []})],
)
def test_a_section_that_is_none_is_told(config: dict):
    with pytest.raises(BrokenCheckpoint, match="prefold section"):
        read_cuts(config)


@given(st.sampled_from(sorted(SHAPES)), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_cut_survives_the_config(model_type: str, merge: bool):
    config = small_config(model_type)
    model_class = auto_class(model_type)._model_mapping[type(config)]
    cuts = study_model(model_class, config, FoldOptions(merge_residual=merge)).cuts
    again = read_cuts({"prefold": {"folds": [cut.as_json("a table") for cut in cuts]}})
    assert [replace(cut, table=replace(cut.table, tensor="a table")) for cut in cuts] == again
    for one, other in zip(again, cuts, strict=True):
        assert (one.row_width, one.eliminated[0], one.added) == (other.row_width, other.embedding, other.added)
        assert set(one.eliminated) == set(other.eliminated)


def test_what_chooses_among_more_keys_than_the_experiment_has_is_kept():
    """Among eight keys everything is chosen, so that nobody seems to read the chooser; a long text does."""
    few, many = (
        study_model(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config).cuts[0].as_json("a table")
        for config in (coverage_config("deepseek_v32", index_topk=number) for number in (4, 2048))
    )
    assert many == few
    assert any("indexer" in column["module"] for column in many["columns"])
