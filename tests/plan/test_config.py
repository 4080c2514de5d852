"""Shapes from the configs of models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedConfig

from prefold.common.errors import UsageError
from prefold.plan.model.config import shape_from_config
from prefold.plan.model.shape import Shape, find_shape, presets
from tests.conftest import auto_class, small_config

CONFIGS = Path(__file__).parents[1] / "configs"
HUB: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "configs.json").read_text())
# Fields that neither the config nor its class has: the model's code alone shows them.
BY_CODE = {
    "gpt-oss-20b": {},
    "gpt-oss-120b": {},
    "kimi-k2": {},
    "command-r-35b": {"parallel": True},
}
# Whether the FFN is gated is said by these configs, by their fields or by their classes.
TOLD = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "phi",
    "cohere",
    "olmo2",
    "deepseek_v2",
    "deepseek_v3",
    "t5",
)
# Nothing says it of these.
NOT_TOLD = {
    "falcon": False,
    "gptj": False,
    "gpt2": False,
    "opt": False,
    "mpt": False,
    "stablelm": True,
    "whisper": False,
}
# Layers that no shape has, and the field that says so.
BEYOND = {
    "gemma3n_text": "hidden_size_per_layer_input",
    "gemma4_text": "hidden_size_per_layer_input",
}
NOT_COUNTED = ("position", "wpe", "bias")


def config_of(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def parameters(config: PreTrainedConfig) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the decoder, each once, without giving them any memory."""
    with torch.device("meta"):
        model = auto_class(config.model_type).from_config(config)
    model.tie_weights()
    return {
        name: p for name, p in model.named_parameters() if ".encoder." not in name and not name.startswith("encoder.")
    }


def matrices(config: PreTrainedConfig) -> int:
    """Return the parameters that a shape counts: no norms, no biases, no trained positions."""
    found = parameters(config).items()
    return sum(p.numel() for name, p in found if p.dim() > 1 and not any(part in name for part in NOT_COUNTED))


def written(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return what a checkpoint of the small model has in its config.json."""
    return json.loads(small_config(model_type, **changes).to_json_string())


@pytest.mark.parametrize("name", ["pythia-6.9b", "mistral-7b", "mixtral-8x7b"])
def test_a_config_and_its_preset_agree(name: str):
    preset, config = find_shape(name), config_of(name)
    found = shape_from_config(config, name=name)
    if name.startswith("pythia"):  # the file has the vocabulary of Graef 2024, and the hub's 50432
        found = replace(found, vocab_size=preset.vocab_size)
    assert replace(found, source=preset.source, max_position_embeddings=0) == preset


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_and_its_preset_agree(name: str):
    preset = find_shape(name)
    assert replace(shape_from_config(HUB[name], name=name, **BY_CODE.get(name, {})), source=preset.source) == preset


@pytest.mark.parametrize("name", BY_CODE)
def test_no_more_is_told_than_the_config_does(name: str):
    found = shape_from_config(HUB[name]).source
    assert ("serial" if BY_CODE[name] else "gated, as decoders with its activation are") in found


# Fields that a shape of an ordinary decoder is written in, under names that several families share.
def as_llama(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
    }


def as_gpt(shape: Shape) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden_size,
        "n_inner": shape.intermediate_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_attention_heads,
        "n_head_kv": shape.num_key_value_heads,
        "kv_channels": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
        "parallel_attn": shape.parallel,
    }


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "mistral-7b"])
def test_presets_of_llamas_are_what_their_fields_say(name: str):
    preset = replace(find_shape(name), sliding_window=0, sliding_layers=0)  # a Llama has none
    assert replace(shape_from_config(as_llama(preset), name=name), source=preset.source) == preset


@given(
    st.sampled_from([name for name, shape in presets().items() if not (shape.experts or shape.latent or shape.cross)])
)
def test_a_shape_survives_being_written_as_a_config_that_no_class_reads(name: str):
    preset = find_shape(name)
    found = shape_from_config(as_gpt(preset), name=name, gated=preset.gated)
    assert replace(found, source=preset.source, nominal=preset.nominal) == replace(
        preset, sliding_window=0, sliding_layers=0
    )


@pytest.mark.parametrize("name", ["pythia-6.9b", "mistral-7b", "mixtral-8x7b"])
def test_weights_are_the_models_parameters_within_a_thousandth(name: str):
    """Norms and biases are what is left: the largest share of them here is Pythia's, 0.03 %."""
    config = config_of(name)
    found = parameters(AutoConfig.for_model(**config))
    assert shape_from_config(config).weights == pytest.approx(sum(p.numel() for p in found.values()), rel=1e-3)


@pytest.mark.parametrize("model_type", TOLD)
def test_weights_are_the_models_matrices(model_type: str):
    assert shape_from_config(written(model_type)).weights == matrices(small_config(model_type))


@pytest.mark.parametrize(("model_type", "gated"), NOT_TOLD.items())
def test_weights_are_the_models_matrices_once_it_is_said_whether_it_is_gated(model_type: str, gated: bool):
    config = written(model_type)
    if str(config.get("hidden_act")) == "silu":
        assert shape_from_config(config).gated == gated
    else:
        with pytest.raises(UsageError, match="whether its FFN is gated"):
            shape_from_config(config)
    assert shape_from_config(config, gated=gated).weights == matrices(small_config(model_type))


@pytest.mark.parametrize("model_type", NOT_TOLD)
def test_the_number_of_parameters_says_whether_it_is_gated(model_type: str):
    count = matrices(small_config(model_type))
    assert shape_from_config(written(model_type), parameters=count).gated == NOT_TOLD[model_type]


def test_a_number_of_parameters_that_fits_neither_says_nothing():
    with pytest.raises(UsageError, match="whether its FFN is gated"):
        shape_from_config(written("falcon"), parameters=matrices(small_config("falcon")) * 2)


def test_whisper_tiny_is_the_decoder_of_its_config():
    config = AutoConfig.for_model("whisper")  # the defaults of the class are those of the tiny model
    found = shape_from_config(json.loads(config.to_json_string(use_diff=False)), name="whisper-tiny", gated=False)
    assert replace(found, source=find_shape("whisper-tiny").source, max_position_embeddings=0) == find_shape(
        "whisper-tiny"
    )
    assert found.weights == matrices(config)


def test_deepseek_v3_is_its_config():
    preset, config = find_shape("deepseek-v3"), AutoConfig.for_model("deepseek_v3")  # as of Whisper
    found = shape_from_config(json.loads(config.to_json_string(use_diff=False)), name="deepseek-v3")
    assert replace(found, source=preset.source, max_position_embeddings=0, stored="fp8") == preset
    assert found.weights == matrices(config)


@pytest.mark.parametrize(
    ("model_type", "parallel"), [("gpt_neox", True), ("falcon", True), ("stablelm", False), ("llama", False)]
)
def test_a_block_is_parallel_where_a_field_says_so(model_type: str, parallel: bool):
    assert shape_from_config(written(model_type), gated=False).parallel == parallel


def test_a_block_of_which_no_field_speaks_is_serial_and_says_why():
    found = shape_from_config(written("phi"))
    assert not found.parallel
    assert found.source == "config.json, as PhiConfig reads it; serial, since no field says otherwise"
    told = shape_from_config(written("phi"), parallel=True)
    assert told.parallel
    assert "serial" not in told.source


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    ],
)
def test_multiquery_attention_has_one_head_of_keys(changes: dict[str, Any], heads: int):
    found = shape_from_config(written("falcon", **changes), gated=False)
    assert found.num_key_value_heads == heads
    assert found.weights == matrices(small_config("falcon", **changes))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deepseek_v3", {"first_k_dense_replace": 0}),
        ("deepseek_v3", {"n_shared_experts": 2}),
        ("deepseek_v3", {"q_lora_rank": None}),
        ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3}),
    ],
)
def test_experts_and_compression_are_counted(model_type: str, changes: dict[str, Any]):
    assert shape_from_config(written(model_type, **changes)).weights == matrices(small_config(model_type, **changes))


MIXED = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "decoder_sparse_step": 2}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "mlp_only_layers": [1]}),
        ("llama4_text", {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2}),
        ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 2}),
    ],
)
def test_layers_without_experts_are_told_from_those_with_them(model_type: str, changes: dict[str, Any]):
    config = AutoConfig.for_model(model_type, **(MIXED | changes))
    gates = sum(p.numel() for name, p in parameters(config).items() if "shared_expert_gate" in name)  # one value each
    assert shape_from_config(json.loads(config.to_json_string())).weights == matrices(config) - gates


def test_a_text_model_within_another_config_is_found():
    inside = written("llama", tie_word_embeddings=False)
    outside = {"model_type": "llava", "text_config": inside, "vision_config": {"hidden_size": 7}}
    assert shape_from_config(outside, name="x") == shape_from_config(inside, name="x")
    assert shape_from_config(outside | {"tie_word_embeddings": True}).tied


def test_a_null_inner_size_is_four_times_the_width():
    assert shape_from_config(written("gpt2", n_inner=None), gated=False).intermediate_size == 4 * 32


def test_what_a_config_never_says_can_be_added_to_it():
    with pytest.raises(UsageError, match="intermediate_size"):
        shape_from_config(written("bloom"), gated=False)
    found = shape_from_config(written("bloom") | {"intermediate_size": 128}, gated=False)
    assert found.weights == matrices(small_config("bloom"))


def test_a_state_that_no_field_describes_is_refused_by_its_kind_of_layer():
    config = written("llama") | {"layer_types": ["full_attention", "linear_attention", "full_attention"]}
    with pytest.raises(UsageError, match="config: layer_types: linear_attention: no shape has such layers"):
        shape_from_config(config | {"model_type": "unheard_of"}, gated=True)


@pytest.mark.parametrize(("model_type", "reason"), BEYOND.items())
def test_layers_that_no_shape_has_are_refused_by_their_field(model_type: str, reason: str):
    with pytest.raises(UsageError, match=f"config: {reason}: no shape has such layers"):
        shape_from_config(written(model_type), gated=True)


NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


@given(st.sets(st.sampled_from(NEEDED), min_size=1))
def test_all_that_is_missing_is_named(left_out: set[str]):
    config = {field: value for field, value in config_of("mistral-7b").items() if field not in left_out}
    with pytest.raises(UsageError) as raised:
        shape_from_config(config)
    assert str(raised.value) == f"config: it does not say {', '.join(field for field in NEEDED if field in left_out)}"


def test_without_a_class_all_that_it_fills_in_is_missing_too():
    config = {field: value for field, value in config_of("mixtral-8x7b").items() if field != "num_experts_per_tok"}
    config |= {"model_type": "unheard_of"}
    del config["tie_word_embeddings"]
    with pytest.raises(UsageError, match=r"say tie_word_embeddings, num_experts_per_tok$"):
        shape_from_config(config)


def test_a_class_that_refuses_its_config_is_one_line():
    with pytest.raises(UsageError, match=r"^llama: .*hidden_size") as raised:
        shape_from_config(written("llama") | {"hidden_size": "wide"})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", ["num_attention_heads", "hidden_size", "num_key_value_heads", "vocab_size"])
@pytest.mark.parametrize("value", [0, -4, True, 2.5])
def test_a_size_that_is_no_positive_number_is_named(field: str, value: Any):
    with pytest.raises(UsageError, match=f"{field}: {value!r} is not a positive whole number"):
        shape_from_config(written("llama") | {field: value})


def test_a_size_that_is_no_number_is_named():
    with pytest.raises(UsageError, match="hidden_size: 'wide' is not a whole number"):
        shape_from_config({"hidden_size": "wide"})


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gated-gelu"])
def test_an_activation_with_a_gate_in_its_name_says_so(activation: str):
    config = as_gpt(find_shape("llama3-8b")) | {"activation_function": activation}
    assert shape_from_config(config).gated


def test_the_config_that_is_given_stays_as_it_was():
    config = written("llama")
    shape_from_config(config)
    assert config == written("llama")


_BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 97,
         "tie_word_embeddings": False, "sliding_window": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "changes", "layers"),
    [
        ("mistral", {}, 6),
        ("mistral", {"sliding_window": None}, 0),
        ("gemma2", {}, 3),
        ("gemma3_text", {}, 5),
        ("gemma3_text", {"layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 2}, 2),
        ("qwen2", {}, 0),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}, 2),
        ("llama", {"sliding_window": None}, 0),
    ],
)
def test_layers_with_a_window(model_type: str, changes: dict[str, Any], layers: int):
    shape = shape_from_config(_BASE | {"model_type": model_type} | changes, gated=True)
    assert shape.sliding_layers == layers
    assert shape.sliding_window == (32 if layers else 0)
