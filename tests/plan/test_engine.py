"""Commands of engines: flags that they have, and nothing where an engine has no such layout or type."""

from dataclasses import replace

import pytest

from prefold.plan import Case, Workload, find_chip, find_shape, mesh_of
from prefold.plan.engine import commands

H100 = find_chip("h100")
STEP = Workload("decode", 16, 2047)


def case(name: str = "llama3.1-70b", ranks: int = 4, **changes: str) -> Case:
    return Case(find_shape(name), H100, mesh_of(H100, ranks), replace(STEP, **changes), "1d-ws", "head")


def test_a_preset_is_served_by_its_hub_id():
    found = commands(case())
    assert found["vllm"] == (
        "vllm serve meta-llama/Llama-3.1-70B --tensor-parallel-size 4"
        " --max-num-seqs 16 --max-model-len 2048 --gpu-memory-utilization 0.9"
    )
    assert found["sglang"].startswith("python -m sglang.launch_server --model-path meta-llama/Llama-3.1-70B --tp 4 ")
    assert "--max_seq_len 2048" in found["tensorrt-llm"]


def test_a_folder_is_quoted_and_a_config_stands_for_its_folder():
    shape = replace(find_shape("llama3-8b"), name="my models/llama/config.json")
    assert "vllm serve 'my models/llama' --tensor" in commands(replace(case(ranks=1), shape=shape))["vllm"]


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ({"weights": "fp8"}, {"vllm": "--quantization fp8", "tensorrt-llm": "# a checkpoint with weights in fp8"}),
        ({"weights": "int4"}, {"vllm": "# a checkpoint with weights in int4", "sglang": "weights in int4"}),
        ({"kv": "fp8"}, {"vllm": "--kv-cache-dtype fp8", "tensorrt-llm": "kv_cache_config: {dtype: fp8}"}),
    ],
)
def test_types_are_options_or_need_a_checkpoint(types: dict[str, str], words: dict[str, str]):
    found = commands(case(**types))
    assert all(text in found[engine] for engine, text in words.items())


def test_weights_as_they_are_stored_need_no_option():
    assert "quantization" not in commands(case("deepseek-v3", 8, weights="fp8"))["vllm"]


def test_no_engine_has_other_layouts_uneven_heads_or_such_a_cache():
    assert commands(replace(case(), layout="2d-ws")) == {}
    assert commands(replace(case(), sharding="batch")) == {}
    assert commands(case(ranks=3)) == {}
    assert commands(case(kv="int4")) == {}


def test_tensorrts_share_is_of_what_weights_leave_free():
    """0.9 of 80 GB less 33 GiB of weights, of 80 GB less those."""
    share = float(commands(case())["tensorrt-llm"].split("fraction ")[1].split()[0])
    weights = find_shape("llama3.1-70b").weights * 2 / 4
    assert share == pytest.approx((0.9 * H100.memory_bytes - weights) / (H100.memory_bytes - weights), abs=0.01)
