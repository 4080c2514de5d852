"""Encoders: one pass over all tokens, and no decode step."""

import json
from typing import Any

import pytest
from transformers import AutoConfig

from prefold.plan import Infeasible, Mesh, Shape, Workload, find_chip, find_shape, plan_layouts
from prefold.plan.cost.attention import Ways, kv_bytes, score_flops
from prefold.plan.model.config import shape_from_config
from tests.plan.test_config import written

H100, ONE = find_chip("h100"), Mesh(1, 1, 1)
PASS = Workload("prefill", 8, 512)


def shape_of(model_type: str, **changes: Any) -> Shape:
    config = AutoConfig.for_model(model_type, **changes)
    return shape_from_config(json.loads(config.to_json_string(use_diff=False)), gated=False)


@pytest.mark.parametrize(
    ("model_type", "changes", "decodes"),
    [
        ("bert", {}, False),
        ("roberta", {}, False),
        ("modernbert", {}, False),
        ("bert", {"is_decoder": True}, True),
        ("modernbert", {"architectures": ["ModernBertForSequenceClassification"]}, False),
        ("eurobert", {"architectures": ["EuroBertForMaskedLM"]}, False),
        ("llama", {}, True),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, True),
        ("bart", {}, True),
        ("t5", {}, True),
        ("jamba", {}, True),
    ],
)
def test_what_fills_masks_does_not_decode(model_type: str, changes: dict[str, Any], decodes: bool):
    assert shape_of(model_type, **changes).decodes is decodes


def test_the_class_that_a_checkpoint_names_says_it_without_transformers_one():
    config = written("llama") | {"model_type": "unheard_of"}
    assert not shape_from_config(config | {"architectures": ["NewForMaskedLM"]}, gated=True).decodes
    assert shape_from_config(config | {"architectures": ["NewForCausalLM"]}, gated=True).decodes


def test_an_encoder_has_no_decode_step():
    with pytest.raises(Infeasible, match="bert: an encoder has no decode step; its one pass is a prefill"):
        plan_layouts(shape_of("bert"), H100, ONE, Workload("decode", 8, 512))


def test_an_encoder_keeps_no_keys_and_values():
    assert kv_bytes(shape_of("bert"), PASS, Ways(1, 1)) == 0
    assert plan_layouts(shape_of("bert"), H100, ONE, PASS).chosen.memory.kv == 0


def test_every_token_of_an_encoder_sees_all_others():
    bert = shape_of("bert")
    assert score_flops(bert, PASS) == 12 * 4 * 768 * 512 * PASS.tokens
    modern = shape_of("modernbert")
    assert (modern.sliding_layers, modern.sliding_window) == (14, 128)
    assert score_flops(modern, PASS) == 4 * 768 * PASS.tokens * (8 * 512 + 14 * 128)


def test_every_preset_decodes():
    assert all(find_shape(name).decodes for name in ("llama3-8b", "whisper-tiny"))
