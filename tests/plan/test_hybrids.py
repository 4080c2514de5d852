"""Layers that keep a state in place of keys and values: their weights, their states, and what a step does with them."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from prefold.common.errors import UsageError
from prefold.plan import Case, Fold, Mesh, Shape, Workload, find_chip, max_context, mesh_of, plan_layouts, terms_of
from prefold.plan.cost.attention import Ways, kv_bytes
from prefold.plan.cost.fold import columns, modules_gone, reads_gone
from prefold.plan.cost.memory import memory_of
from prefold.plan.cost.state import state_bytes, state_traffic
from prefold.plan.cost.terms import flops, weight_bytes_read
from prefold.plan.model.config import shape_from_config
from prefold.plan.serving import concurrency_that_fits
from tests.conftest import small_config

ONE = Mesh(1, 1, 1)
H100 = find_chip("h100")
STEP = Workload("decode", 4, 1000)
_NANO = "M-M-M-M*-M-M-M-M*-M-"
_TURNS = ["linear_attention", "full_attention"] * 4
# The classes' own defaults, most of which are those of a model that was published, and what else there may be.
DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": ("jamba", {}),
    "qwen3_next": ("qwen3_next", {}),
    "qwen3_5": ("qwen3_5_text", {}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {}),
    "nemotron_h": ("nemotron_h", {}),
    "nemotron_h, no experts": ("nemotron_h", {"hybrid_override_pattern": _NANO, "num_hidden_layers": len(_NANO)}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {}),
    "falcon_mamba": ("falcon_mamba", {}),
    "falcon_h1": ("falcon_h1", {}),
    "bamba": ("bamba", {"attn_layer_indices": [9, 18, 27]}),
    "granitemoehybrid": ("granitemoehybrid", {"num_hidden_layers": 8, "layer_types": _TURNS}),
    "granitemoehybrid, no experts": (
        "granitemoehybrid",
        {"num_hidden_layers": 8, "layer_types": _TURNS, "num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "olmo_hybrid": ("olmo_hybrid", {}),
    "lfm2": ("lfm2", {"full_attn_idxs": [2, 5, 8]}),
    "lfm2_moe": ("lfm2_moe", {"num_hidden_layers": 8, "layer_types": ["conv", "full_attention"] * 4}),
}
SMALL = ("mamba", "mamba2", "jamba", "qwen3_5_text")


def skeleton(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def written(config: PreTrainedConfig) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


@cache
def shape_of(name: str) -> tuple[Shape, int]:
    """Return the shape of a default config, and the parameters of its class."""
    model_type, changes = DEFAULTS[name]
    config = AutoConfig.for_model(model_type, **changes)
    count = sum(parameter.numel() for parameter in skeleton(config).parameters())
    return shape_from_config(written(config), name=name, parameters=count), count


def case(shape: Shape, workload: Workload = STEP, mesh: Mesh = ONE, layout="1d-ws", sharding="head", fold=None) -> Case:
    return Case(shape, H100, mesh, workload, layout, sharding, fold)


@pytest.mark.parametrize("name", DEFAULTS)
def test_weights_are_the_classs_parameters(name: str):
    """Norms, biases and the figures of each head are what is left."""
    shape, count = shape_of(name)
    assert shape.weights == pytest.approx(count, rel=2e-3 if shape.weights < 1e9 else 3e-4)


@pytest.mark.parametrize(
    ("name", "attention", "states", "ffns"),
    [
        ("jamba", 4, 28, 32),
        ("qwen3_next", 12, 36, 48),
        ("nemotron_h", 1, 1, 2),
        ("nemotron_h, no experts", 2, 9, 9),
        ("mamba2", 0, 64, 0),
        ("falcon_h1", 32, 32, 32),
    ],
)
def test_layers_are_counted_by_what_they_have(name: str, attention: int, states: int, ffns: int):
    shape, _ = shape_of(name)
    assert (shape.attention_layers, shape.state_layers, shape.ffn_layers) == (attention, states, ffns)


@pytest.mark.parametrize(("name", "gate"), [("qwen3_next", True), ("qwen3_5_moe", True), ("olmo_hybrid", False)])
def test_the_class_shows_a_gate_of_what_attention_returns(name: str, gate: bool):
    assert shape_of(name)[0].output_gate is gate


def test_a_field_says_so_before_the_class_does():
    config = written(AutoConfig.for_model("qwen3_next"))
    assert not shape_from_config(config | {"attn_output_gate": False}).output_gate
    unknown = config | {"attn_output_gate": True, "model_type": "unheard_of"}
    assert shape_from_config(unknown, gated=True).output_gate


def test_a_text_model_within_another_config_is_found():
    inside = written(AutoConfig.for_model("qwen3_5_moe_text"))
    assert shape_from_config({"model_type": "qwen3_5_moe", "text_config": inside}).state_layers == 30


@pytest.mark.parametrize("model_type", SMALL)
def test_states_are_those_that_transformers_keeps(model_type: str):
    """Its convolution keeps one input more than the next token needs."""
    config = small_config(model_type)
    state = shape_from_config(written(config), gated=True).state
    assert state is not None
    with torch.no_grad():
        found = AutoModelForCausalLM.from_config(config)(torch.ones(1, 8, dtype=torch.long), use_cache=True)
    layers = [
        layer for layer in (found.get("past_key_values") or found.cache_params).layers if hasattr(layer, "conv_states")
    ]
    assert len(layers) == state.layers
    for layer in layers:
        (recurrent,), (conv,) = layer.recurrent_states.values(), layer.conv_states.values()
        assert recurrent.numel() == state.recurrent
        assert conv.numel() * (conv.shape[-1] - 1) == state.conv * conv.shape[-1]


@pytest.mark.parametrize("field", ["attn_layer_period", "full_attention_interval", "hybrid_override_pattern"])
def test_kinds_of_layers_are_read_without_a_class(field: str):
    config = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 8}
    config |= {"vocab_size": 97, "tie_word_embeddings": False, "mamba_d_state": 16, "mamba_d_conv": 4, field: 4}
    config |= {"hybrid_override_pattern": "M-M-M*M-"} if field == "hybrid_override_pattern" else {}
    shape = shape_from_config(config, gated=True)
    assert shape.attention_layers == (2 if field != "hybrid_override_pattern" else 1)
    assert shape.state_layers == (6 if field != "hybrid_override_pattern" else 4)


def test_layers_that_share_their_weights_have_no_shape():
    with pytest.raises(UsageError, match="n_mamba_heads: no shape has such layers"):
        shape_from_config(written(AutoConfig.for_model("zamba2")), gated=True)


def test_the_cache_is_of_attention_layers_alone():
    jamba, _ = shape_of("jamba")
    assert kv_bytes(jamba, STEP, Ways(1, 1)) == 4 * 1000 * 4 * (2 * 8 * 128) * 2
    assert kv_bytes(shape_of("mamba2")[0], STEP, Ways(1, 1)) == 0


def test_a_state_is_as_large_at_any_context():
    jamba, _ = shape_of("jamba")
    inner = 2 * 4096
    each = 28 * (inner * 16 * 4 + inner * 3 * 2)
    assert state_bytes(jamba, STEP, Ways(1, 1)) == 4 * each
    assert memory_of(case(jamba, replace(STEP, context=100_000))).state == 4 * each
    assert max_context(shape_of("mamba2")[0], H100, ONE, 8, "head") == float("inf")


def test_a_step_reads_each_state_and_writes_it():
    jamba, _ = shape_of("jamba")
    prefill = replace(STEP, phase="prefill")
    assert state_traffic(jamba, STEP, Ways(1, 1)) == 2 * state_bytes(jamba, STEP, Ways(1, 1))
    assert state_traffic(jamba, prefill, Ways(1, 1)) == state_bytes(jamba, prefill, Ways(1, 1))
    terms = terms_of(case(jamba))
    assert terms.state == state_traffic(jamba, STEP, Ways(1, 1)) / 3350e9
    assert terms.memory == pytest.approx(terms.weights + terms.kv + terms.rows + terms.state)


def test_states_are_split_over_chips():
    mamba, _ = shape_of("mamba2")
    mesh = mesh_of(H100, 8)
    whole = memory_of(case(mamba)).state
    assert memory_of(case(mamba, mesh=mesh)).state == whole / 8
    assert memory_of(case(mamba, replace(STEP, batch=8), mesh, "wg-xyz", "batch")).state == whole / 4


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_weight_of_a_folded_first_layer_is_gone_once(name: str):
    shape, _ = shape_of(name)
    source, folded = case(shape), case(shape, fold=Fold())
    gone = reads_gone(shape, 4)
    assert gone == sum(column.weights for column in columns(shape)) > 0
    assert weight_bytes_read(source) - weight_bytes_read(folded) == pytest.approx(2 * gone)
    assert flops(source) - flops(folded) == pytest.approx(2 * 4 * gone)


def test_the_first_layers_columns_are_those_of_its_mixers():
    assert [column.name for column in columns(shape_of("mamba")[0])] == ["residual", "state"]
    assert columns(shape_of("mamba")[0])[1].width == 2 * 2 * 768
    assert len(columns(shape_of("falcon_h1")[0])) == 4
    assert modules_gone(shape_of("mamba")[0]) == 2


@pytest.mark.parametrize("fold", [None, Fold()])
@pytest.mark.parametrize("name", DEFAULTS)
def test_hybrids_are_planned_on_many_chips(name: str, fold: Fold | None):
    shape, _ = shape_of(name)
    plan = plan_layouts(shape, H100, mesh_of(H100, 8), replace(STEP, batch=64), fold=fold)
    assert plan.chosen.memory.fits
    assert all(0 < each.ideal_seconds <= each.ideal_sum_seconds for each in plan.estimates)


def test_layers_without_attention_move_no_batch():
    mamba, _ = shape_of("mamba2")
    mesh = mesh_of(H100, 8)
    head, batch = (terms_of(case(mamba, replace(STEP, batch=8), mesh, sharding=each)) for each in ("head", "batch"))
    assert head.communication == batch.communication


def test_sequences_without_a_cache_fit_by_their_states():
    mamba, _ = shape_of("mamba2")
    most = concurrency_that_fits(case(mamba))
    assert most > 0
    room = memory_of(case(mamba, replace(STEP, batch=1)))
    assert most * room.state == pytest.approx(room.available - (room.total - room.state), rel=1e-2)
