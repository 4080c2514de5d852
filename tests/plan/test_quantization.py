"""The type that a checkpoint's weights are stored in."""

from typing import Any

import pytest

from prefold.plan import Workload, shape_from_config, stored_as
from tests.plan.test_config import written


def compressed(bits: int, kind: str, group: int | None = None, form: str = "pack-quantized") -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "group_size": group, "strategy": "group"}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


# As the configs of published checkpoints have them.
SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "DeepSeek V3": ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8"),
    "FBGEMM": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fp8"),
    "gpt-oss": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "int4"),
    "GPTQ, 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "int8"),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, "int4"),
    "an older AWQ": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "int4"),
    "compressed-tensors, W4A16": (compressed(4, "int", 128), "int4"),
    "compressed-tensors, W8A8": (compressed(8, "int", form="int-quantized"), "int8"),
    "compressed-tensors, FP8": (compressed(8, "float", form="float-quantized"), "fp8"),
    "compressed-tensors, NVFP4": (compressed(4, "float", 16, "nvfp4-pack-quantized"), "fp4"),
    "compressed-tensors, MXFP4": (compressed(4, "float", 32), "mxfp4"),
    "ModelOpt, NVFP4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
    "ModelOpt, FP8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
    "bitsandbytes, NF4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "int4"),
    "bitsandbytes, 8 bits": ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "int8"),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_type_is_that_of_the_checkpoint(name: str):
    section, kind = SECTIONS[name]
    assert stored_as({"quantization_config": section}) == (kind, "")
    assert stored_as({"text_config": {"quantization_config": section}}) == (kind, "")


def test_a_config_without_a_word_of_it_has_16_bits():
    assert stored_as(written("llama")) == ("bf16", "")
    assert shape_from_config(written("llama")).stored == "bf16"


def test_a_shape_has_the_type_of_its_checkpoint():
    section, kind = SECTIONS["DeepSeek V3"]
    assert shape_from_config(written("llama") | {"quantization_config": section}).stored == kind


def test_an_unknown_method_is_named_and_counted_as_16_bits():
    kind, note = stored_as({"quantization_config": {"quant_method": "vptq"}})
    assert kind == "bf16"
    assert note == "config: quantization_config: vptq: no such type of weights; they are counted as bf16"


@pytest.mark.parametrize(
    ("weights", "compute"), [("fp8", "fp8"), ("fp4", "fp4"), ("mxfp4", "fp4"), ("int8", "bf16"), ("int4", "bf16")]
)
def test_what_is_stored_in_integers_is_widened_before_it_is_multiplied(weights: str, compute: str):
    assert Workload("decode", 1, 1, weights=weights).compute == compute
