"""An adapter becomes part of the table and of a smaller adapter, and the two together say what it said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from prefold.convert import BrokenCheckpoint, FoldOptions, UnsupportedModel, UsageError, convert_checkpoint
from prefold.convert.adapter import WEIGHTS, open_adapter, remaining_adapter
from prefold.convert.checkpoint.files import ADAPTER, ADAPTER_FOLDER, CONFIG
from prefold.verify import verify_checkpoint
from tests.conftest import Checkpoint, load, tokens

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "serial": ("llama", torch.float32, {"target_modules": LLAMA}),
    "bfloat16": ("llama", torch.bfloat16, {"target_modules": LLAMA}),
    "ranks": (
        "llama",
        torch.float32,
        {"target_modules": LLAMA, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
    ),
    "dora": ("llama", torch.float32, {"target_modules": LLAMA, "use_dora": True}),
    "expression": ("phi3", torch.float32, {"target_modules": r".*\.(qkv_proj|down_proj)"}),
    "excluding": (
        "llama",
        torch.float32,
        {"target_modules": LLAMA, "exclude_modules": r"model\.layers\.[01]\.self_attn\.k_proj"},
    ),
    "another layer alone": ("llama", torch.float32, {"target_modules": LLAMA, "layers_to_transform": [1]}),
    "some layers": ("llama", torch.float32, {"target_modules": LLAMA, "layers_to_transform": [0, 2]}),
    "head as well": ("llama", torch.float32, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "experts": (
        "mixtral",
        torch.float32,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
    ),
    "parallel": ("gpt_neox", torch.float32, {"target_modules": "all-linear"}),
    "parallel dora": ("gpt_neox", torch.bfloat16, {"target_modules": "all-linear", "use_dora": True}),
    "one projection": ("bloom", torch.float32, {"target_modules": ["query_key_value"]}),
    "state space": ("mamba", torch.float32, {"target_modules": ["in_proj", "x_proj"]}),
}


def make_adapter(source: Path, config: Any) -> Path:
    """Save an adapter whose every value is random, since a new one changes nothing."""
    adapted = get_peft_model(load(source), config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad or "lora" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    folder = source.with_name("adapter")
    adapted.save_pretrained(folder)
    return folder


def lora(source: Path, **options: Any) -> Path:
    return make_adapter(source, LoraConfig(**({"r": 2, "task_type": "CAUSAL_LM"} | options)))


@torch.no_grad()
def merged_logits(folder: Path, adapter: Path) -> torch.Tensor:
    model = load(folder)
    if adapter.exists():
        model = PeftModel.from_pretrained(model, adapter).eval().merge_and_unload()
    return model(tokens()).logits


@pytest.mark.parametrize("case", CASES)
def test_the_fold_with_the_remaining_adapter_is_the_source_with_the_whole_one(checkpoint: Checkpoint, fold, case: str):
    model_type, dtype, options = CASES[case]
    source = checkpoint(model_type, dtype)
    adapter = lora(source, **options)
    folded = fold(source, adapter=adapter)
    with torch.no_grad():
        plain = load(source)(tokens()).logits
    wanted = merged_logits(source, adapter)
    assert not torch.allclose(wanted, plain, atol=1e-2)
    assert torch.equal(merged_logits(folded, folded / ADAPTER_FOLDER), wanted)


def test_the_remaining_adapter_also_runs_without_being_merged(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=LLAMA)
    folded = fold(source, adapter=adapter)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(load(source), adapter).eval()(tokens()).logits
        got = PeftModel.from_pretrained(load(folded), folded / ADAPTER_FOLDER).eval()(tokens()).logits
    torch.testing.assert_close(got, wanted)


def test_what_remains_keeps_its_bytes_and_names_no_base_model(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=LLAMA)
    rest = fold(source, adapter=adapter) / ADAPTER_FOLDER
    before, after = load_file(adapter / WEIGHTS), load_file(rest / WEIGHTS)
    assert {name.split(".lora_")[0][len("base_model.model.") :] for name in before.keys() - after.keys()} == {
        f"model.layers.0.self_attn.{part}_proj" for part in "qkv"
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    config = json.loads((rest / ADAPTER).read_text())
    assert config["base_model_name_or_path"] is None
    assert config["exclude_modules"] == [f"model.layers.0.self_attn.{part}_proj" for part in "kqv"]


def test_nothing_remains_of_an_adapter_for_folded_modules_alone(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=["q_proj"], layers_to_transform=[0])
    folded = fold(source, adapter=adapter)
    assert not (folded / ADAPTER_FOLDER).exists()
    assert torch.equal(merged_logits(folded, folded / ADAPTER_FOLDER), merged_logits(source, adapter))


def test_an_adapter_that_leaves_folded_modules_alone_passes_through_whole(checkpoint: Checkpoint, tmp_path: Path):
    source = checkpoint()
    adapter = lora(source, target_modules=["up_proj"])
    assert remaining_adapter(adapter, ["model.layers.0.self_attn.q_proj"], tmp_path / "rest")
    assert load_file(tmp_path / "rest" / WEIGHTS).keys() == load_file(adapter / WEIGHTS).keys()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "embedding": ({}, {"target_modules": ["q_proj", "embed_tokens"]}, r"model\.embed_tokens: the adapter's"),
    "norm": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}, r"0\.input_layernorm: the"),
    "new tokens": (
        {},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3]},
        r"embed_tokens: .*token_adapter",
    ),
    "biases": ({"attention_bias": True}, {"target_modules": ["q_proj"], "bias": "all"}, r"q_proj: .*bias replaces"),
    "tied head": (
        {"tie_word_embeddings": True},
        {"target_modules": ["q_proj", "lm_head"]},
        r"lm_head: the adapter changes it, and it is tied|embed_tokens: the adapter's",
    ),
    "woken by tokens": ({}, {"target_modules": ["q_proj"], "alora_invocation_tokens": [3]}, "aLoRA"),
    "other look-ups": (
        {"model_type": "gpt2"},
        {"target_modules": ["c_attn", "wpe"], "fan_in_fan_out": True},
        r"wpe: the adapter's",
    ),
    "random loading": ({}, {"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_4"}, "random numbers"),
    "repeated layers": ({}, {"target_modules": ["q_proj"], "layer_replication": [[0, 3], [1, 3]]}, "repeats layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_become_part_of_a_table_is_refused_by_name(checkpoint: Checkpoint, fold, tmp_path, case: str):
    changes, options, why = REFUSED[case]
    source = checkpoint(**({"model_type": "llama"} | changes))
    adapter = lora(source, **options)
    with pytest.raises(UnsupportedModel, match=why):
        fold(source, adapter=adapter)
    assert not (tmp_path / "folded").exists()


def test_an_adapter_of_another_kind_is_refused(checkpoint: Checkpoint, fold):
    source = checkpoint()
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(UnsupportedModel, match="a IA3 adapter"):
        fold(source, adapter=make_adapter(source, config))


def test_pickled_weights_are_never_opened(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=["q_proj"])
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedModel, match=r"only adapter_model\.bin, which may run code"):
        fold(source, adapter=adapter)


def test_an_adapter_for_another_model_is_refused(checkpoint: Checkpoint, fold):
    adapter = lora(checkpoint("gpt_neox", name="other"), target_modules=["query_key_value"])
    with pytest.raises(UnsupportedModel, match="adapts no module of LlamaForCausalLM"):
        fold(checkpoint(), adapter=adapter)


def test_a_half_of_a_lora_is_not_taken_for_a_whole_one(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=["q_proj"])
    tensors = load_file(adapter / WEIGHTS)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(BrokenCheckpoint, match=r"q_proj\.lora_B\.weight: not in the adapter"):
        fold(source, adapter=adapter)


def test_a_folder_without_an_adapter(checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(UsageError, match="not an adapter"):
        open_adapter(tmp_path)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("prefold.convert.adapter.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"prefold\[adapters\]"):
        open_adapter(tmp_path)


def test_a_refused_adapter_leaves_an_older_output_alone(checkpoint: Checkpoint, fold):
    source = checkpoint()
    older = fold(source)
    adapter = lora(source, target_modules=["embed_tokens"])
    with pytest.raises(UnsupportedModel):
        convert_checkpoint(str(source), older, options=FoldOptions(adapter=adapter, force=True))
    assert "prefold" in json.loads((older / CONFIG).read_text())


def test_the_fold_and_its_adapter_verify_against_the_source_and_its(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=LLAMA)
    folded = fold(source, adapter=adapter)
    verification = verify_checkpoint(str(source), folded, adapter=adapter)
    assert verification.passed, verification.as_json()
    without = verify_checkpoint(str(source), folded)
    assert "rows" in without.failed


def test_behind_a_sum_of_look_ups_an_adapter_is_merged_as_well(checkpoint: Checkpoint, fold):
    source = checkpoint("gpt2")
    adapter = lora(source, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    folded = fold(source, adapter=adapter)
    verification = verify_checkpoint(str(source), folded, adapter=adapter)
    assert verification.passed, verification.as_json()


def test_both_are_timed_with_their_own_adapters(checkpoint: Checkpoint, fold):
    source = checkpoint()
    adapter = lora(source, target_modules=LLAMA)
    verification = verify_checkpoint(str(source), fold(source, adapter=adapter), adapter=adapter, speed=True)
    assert verification.passed, verification.as_json()
    assert verification.checks["speed"].figures["ratio"] > 0


@pytest.fixture
def adapted(checkpoint: Checkpoint) -> tuple[Path, Path]:
    source = checkpoint("llama")
    return source, make_adapter(source, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


@pytest.mark.parametrize("name", [ADAPTER, WEIGHTS])
def test_an_adapters_file_that_leads_out_of_it_is_not_read(name: str, adapted: tuple[Path, Path], tmp_path: Path):
    source, adapter = adapted
    (adapter / name).rename(tmp_path / name)
    (adapter / name).symlink_to(tmp_path / name)
    with pytest.raises(BrokenCheckpoint, match="a link that leads out of the checkpoint"):
        convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(adapter=adapter))


def test_an_adapter_that_names_code_to_import_is_refused(adapted: tuple[Path, Path], tmp_path: Path):
    source, adapter = adapted
    config = json.loads((adapter / ADAPTER).read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    (adapter / ADAPTER).write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="whose code peft would import by name"):
        convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(adapter=adapter))


def test_an_adapter_in_the_output_is_not_replaced(adapted: tuple[Path, Path], tmp_path: Path):
    source, adapter = adapted
    out = convert_checkpoint(str(source), tmp_path / "out").out
    adapter = adapter.rename(out / "mine")
    with pytest.raises(UsageError, match="the adapter lies there, and would be replaced"):
        convert_checkpoint(str(source), out, options=FoldOptions(adapter=adapter, force=True))
    assert (adapter / WEIGHTS).exists()


def test_a_config_that_nests_or_excludes_beyond_all_measure(adapted: tuple[Path, Path], tmp_path: Path):
    source, adapter = adapted
    text = (adapter / ADAPTER).read_text()
    for changed, error in (('{"a":' * 100_000, BrokenCheckpoint), (None, UnsupportedModel)):
        (adapter / ADAPTER).write_text(changed or json.dumps(json.loads(text) | {"exclude_modules": 3}))
        with pytest.raises(error, match=r"adapter_config\.json|exclude_modules"):
            convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(adapter=adapter))
