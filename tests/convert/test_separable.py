"""Sums of look-ups behind a norm: which are found, with which factor, and what is not taken for one."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, PreTrainedConfig

from prefold.convert import UnsupportedModel
from prefold.convert.experiment.discover import Discovery, discover
from prefold.convert.experiment.separable import Separable
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.model.inputs import Side, find_sides
from tests.conftest import SUMS, small_config
from tests.convert.skeletons import Bent, Mixing, skeleton

_SIZES = {"vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64} | {
    f"{side}_{part}": size
    for side in ("encoder", "decoder")
    for part, size in (("attention_heads", 4), ("ffn_dim", 48))
}
_SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def found_in(config: PreTrainedConfig, side: int = 0) -> Discovery:
    auto = AutoModelForSeq2SeqLM if config.model_type in ("marian", "mbart") else None
    model, _ = skeleton(config, auto=auto)
    where = find_sides(model)[side]
    model, first_block = skeleton(config, where.name, auto)
    return discover(model, where, first_block, experiment_tokens(model.config))[0]


def sum_in(config: PreTrainedConfig, side: int = 0) -> Separable:
    found = found_in(config, side).separable
    assert found is not None
    return found


def last(names: list[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names]


def test_gpt2_sums_token_and_position_before_one_norm():
    found = sum_in(small_config("gpt2"))
    assert (found.token, found.factor) == ("transformer.wte", 1.0)
    assert [(each.module, each.factor) for each in found.look_ups] == [("transformer.wpe", 1.0)]
    assert [(norm.module, norm.centred, norm.eps) for norm in found.norms] == [("transformer.h.0.ln_1", True, 1e-5)]
    assert last([column.name for column in found.columns]) == ["c_attn"]
    assert found.normed == []  # nobody else reads that norm


def test_bert_sums_three_and_its_norm_is_also_the_residual():
    found = sum_in(small_config("bert"))
    assert last([each.module for each in found.look_ups]) == ["position_embeddings", "token_type_embeddings"]
    assert last([column.name for column in found.columns]) == ["query", "key", "value"]
    assert last([norm.name for norm in found.normed]) == ["LayerNorm"]


def test_marian_scales_its_tokens_by_the_root_of_the_width():
    """It has no norm before the first projections: they see the sum itself."""
    config = CONFIG_MAPPING["marian"](**(_SIZES | {"scale_embedding": True}))
    for side in (0, 1):
        found = sum_in(config, side)
        assert found.factor == pytest.approx(32**0.5, rel=1e-6)
        assert found.norms == []
        assert last([column.name for column in found.columns]) == ["q_proj", "k_proj", "v_proj"]
        assert [each.factor for each in found.look_ups] == [1.0]


@pytest.mark.parametrize("scaled", [True, False])
def test_mbart_has_two_norms_one_behind_the_other(scaled: bool):
    config = CONFIG_MAPPING["mbart"](**(_SIZES | {"scale_embedding": scaled}))
    for side in (0, 1):
        found = sum_in(config, side)
        assert last([norm.module for norm in found.norms]) == ["layernorm_embedding", "self_attn_layer_norm"]
        assert found.factor == 1.0  # its embedding scales by itself
        assert last([norm.name for norm in found.normed]) == ["layernorm_embedding"]


def test_gpt_1_has_no_norm_before_its_projection():
    config = CONFIG_MAPPING["openai-gpt"](vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    found = sum_in(config)
    assert (found.norms, found.normed) == ([], [])
    assert last([column.name for column in found.columns]) == ["c_attn"]


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "bloom", "mamba", "modernbert"])
def test_what_sees_the_token_alone_has_no_sum(model_type: str):
    assert found_in(small_config(model_type)).separable is None


@pytest.mark.parametrize("model_type", SUMS)
def test_nothing_of_a_sum_can_be_merged_and_its_look_ups_stay(model_type: str):
    found = found_in(small_config(model_type))
    assert found.mergeable is None
    assert found.separable is not None
    assert not {each.module for each in found.separable.look_ups} & {
        each.name for each in [*found.columns, *found.dropped]
    }


class _Gated(nn.Linear):
    """Scales with its input's size: linear along every line from the origin, and nowhere else."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) * values.abs().mean(-1, keepdim=True)


class _Placed(nn.Linear):
    """Linear, and sees its position."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) * (1 + 0.01 * torch.arange(values.shape[1]))[None, :, None]


def opt_with(kind: type[nn.Linear]) -> Discovery:
    """Let one projection of OPT cheat."""
    model, first_block = skeleton(small_config("opt"))
    attention = model.get_submodule(f"{first_block}.self_attn")
    cheat = kind(32, 32)
    cheat.load_state_dict(attention.k_proj.state_dict())
    attention.k_proj = cheat
    return discover(model, Side(), first_block, experiment_tokens(model.config))[0]


@pytest.mark.parametrize("kind", [Bent, _Gated, Mixing, _Placed])
def test_a_projection_that_is_not_linear_in_its_own_row_is_not_taken(kind: type[nn.Linear]):
    """The experiment is seen to fail where it must: one projection is made to cheat by one per cent."""
    found = opt_with(kind).separable
    assert found is not None
    assert last([column.name for column in found.columns]) == ["q_proj", "v_proj"]
    assert last([norm.name for norm in found.normed]) == ["self_attn_layer_norm"]  # who cheats still reads the norm


def test_an_honest_projection_in_the_same_place_is_taken():
    found = opt_with(nn.Linear).separable
    assert found is not None
    assert last([column.name for column in found.columns]) == ["q_proj", "k_proj", "v_proj"]


class _Squared(nn.Embedding):
    """Positions that are no rows of what the module holds: no look-up."""

    def forward(self, *args, **kwargs) -> torch.Tensor:
        return super().forward(*args, **kwargs).square()


def test_positions_that_are_no_look_up_refuse_the_model():
    model, first_block = skeleton(small_config("gpt2"))
    cheat = _Squared(*model.transformer.wpe.weight.shape)
    cheat.weight = model.transformer.wpe.weight
    model.transformer.wpe = cheat
    with pytest.raises(UnsupportedModel):
        discover(model, Side(), first_block, experiment_tokens(model.config))
