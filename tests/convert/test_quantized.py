"""Quantized sources: folded to the bit, their other layers untouched, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from prefold.convert import FoldOptions, UnsupportedModel, UsageError, convert_checkpoint, inspect_checkpoint
from prefold.convert.checkpoint.files import CONFIG, SINGLE
from prefold.convert.fold.first_layer import require_token_pure
from prefold.convert.study import study_model
from prefold.verify import verify_checkpoint
from prefold.verify.reads import check_packed_reads
from tests.conftest import Checkpoint, load, random_model, small_config, tokens
from tests.convert.quantizing import awq, fp8, gptq, mxfp4, rewrite

BF16 = {"dtype": torch.bfloat16}
WIDE = BF16 | {"hidden_size": 128, "intermediate_size": 128}
GPT_OSS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


def ue8m0(folder: Path) -> Path:
    return fp8(folder, torch.float8_e8m0fnu)


def gpt_oss(folder: Path) -> Path:
    from transformers import AutoConfig

    random_model(AutoConfig.for_model("gpt_oss", **GPT_OSS), torch.bfloat16).save_pretrained(folder)
    return mxfp4(folder)


def bitsandbytes(**options: Any) -> Callable[[Path], Path]:
    def quantize(folder: Path) -> Path:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not a dependency")
        config = BitsAndBytesConfig(**options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=config)
        model.save_pretrained(folder.with_name("quantized"))
        return folder.with_name("quantized")

    return quantize


def compressed(kind: str, bits: int, inputs: str | None) -> Callable[[Path], Path]:
    """One scale per row of a weight; ``inputs`` are rounded by one scale per token, or per tensor."""

    def quantize(folder: Path) -> Path:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is not a dependency")
        top = 448 if kind == "float" else 127
        form = {"float": torch.float8_e4m3fn, "int": torch.int8}[kind]

        def change(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            scale = (weight.abs().amax(1, keepdim=True) / top).bfloat16()
            small = weight / scale.float()
            small = small.clamp(-top, top) if kind == "float" else small.round().clamp(-top, top)
            return {name: small.to(form), f"{name}_scale": scale}

        common = {"num_bits": bits, "type": kind, "symmetric": True}
        scheme: dict[str, Any] = {"targets": ["Linear"], "weights": common | {"strategy": "channel", "dynamic": False}}
        scheme["input_activations"] = common | {"strategy": inputs, "dynamic": True} if inputs else None
        config = {"config_groups": {"group_0": scheme}, "format": f"{kind}-quantized", "ignore": ["lm_head"]}
        return rewrite(
            folder, change, config | {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
        )

    return quantize


def gptqmodel(quantize: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def checked(folder: Path) -> Path:
        pytest.importorskip("gptqmodel", reason="gptqmodel is not a dependency", exc_type=ImportError)
        pytest.importorskip("optimum", reason="optimum is not a dependency")
        return quantize(folder)

    return checked


SOURCES: dict[str, tuple[str, dict[str, Any], Callable[[Path], Path]]] = {
    "fp8": ("llama", BF16, fp8),
    "fp8, powers of two": ("llama", BF16, ue8m0),
    "fp8, tied": ("llama", BF16 | {"tie_word_embeddings": True}, fp8),
    "fp8, experts": ("mixtral", BF16, fp8),
    "fp8, parallel": ("gpt_neox", BF16, fp8),
    "mxfp4": ("llama", BF16, lambda folder: gpt_oss(folder.with_name("oss"))),
    "bitsandbytes 4": ("llama", WIDE, bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)),
    "bitsandbytes 8": ("llama", WIDE, bitsandbytes(load_in_8bit=True)),
    "compressed fp8": ("llama", BF16, compressed("float", 8, None)),
    "compressed fp8, inputs too": ("llama", BF16, compressed("float", 8, "token")),
    "compressed int8, inputs too": ("llama", BF16, compressed("int", 8, "token")),
    "gptq": ("llama", WIDE, gptqmodel(gptq)),
    "awq": ("llama", WIDE, gptqmodel(awq)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_quantized_source_folds_to_the_bit_and_keeps_its_other_tensors(checkpoint: Checkpoint, fold, name: str):
    model_type, options, quantize = SOURCES[name]
    source = quantize(checkpoint(model_type, **options))
    folded = fold(source)
    before, after = load(source), load(folded)
    with torch.no_grad():
        assert torch.equal(after(tokens()).logits, before(tokens()).logits)
    said = json.loads((folded / CONFIG).read_text())
    assert said["quantization_config"] == json.loads((source / CONFIG).read_text())["quantization_config"]
    gone = tuple(column["module"] + "." for fold in said["prefold"]["folds"] for column in fold["columns"])
    expected = {key: each for key, each in load_file(source / SINGLE).items() if not key.startswith(gone)}
    kept = {key: each for file in folded.glob("model-*.safetensors") for key, each in load_file(file).items()}
    assert not [key for key in kept if key.startswith(gone)]
    table_and_dropped = ("embed", "input_layernorm", "layers.0.post_attention_layernorm", "lm_head")
    assert all(any(part in key for part in table_and_dropped) for key in expected.keys() ^ kept.keys())
    for key in expected.keys() & kept.keys():
        assert torch.equal(expected[key].view(-1).view(torch.uint8), kept[key].view(-1).view(torch.uint8)), key


@pytest.mark.parametrize("name", ["fp8", "mxfp4", "bitsandbytes 4", "compressed int8, inputs too"])
def test_the_fold_of_a_quantized_source_verifies(checkpoint: Checkpoint, fold, name: str):
    model_type, options, quantize = SOURCES[name]
    source = quantize(checkpoint(model_type, **options))
    verification = verify_checkpoint(str(source), fold(source))
    assert verification.passed, verification.as_json()
    assert "equal bit for bit" in verification.checks["logits"].summary
    compared = "not compared" not in verification.checks["reads"].summary
    assert compared == (name != "bitsandbytes 4")


def test_inputs_that_are_rounded_together_are_refused_by_the_modules_name(checkpoint: Checkpoint, fold):
    source = compressed("int", 8, "tensor")(checkpoint("llama", **BF16))
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.self_attn\.q_proj: .* depends on the tokens"):
        fold(source)


class SharedScale(nn.Linear):
    """Rounds its input to 8 bits by one scale for all tokens."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = hidden.abs().max() / 127
        return super().forward((hidden / scale).round() * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_experiment_tells_a_shared_scale_from_rounding(dtype: torch.dtype):
    model = random_model(small_config("llama"), dtype)
    cut = study_model(type(model), model.config).cuts[0]
    require_token_pure(model, cut)
    shared = SharedScale(32, 16, bias=False, dtype=dtype)
    shared.load_state_dict(model.model.layers[0].self_attn.k_proj.state_dict())
    model.model.layers[0].self_attn.k_proj = shared
    with pytest.raises(UnsupportedModel, match=r"k_proj"):
        require_token_pure(model, cut)


@pytest.mark.parametrize(("method", "why"), [("nobody_knows_this", "does not know"), ("eetq", "requires|eetq")])
def test_what_cannot_be_loaded_here_is_refused_by_its_method(checkpoint: Checkpoint, tmp_path: Path, method, why):
    source = rewrite(checkpoint(), lambda name, tensor: {name: tensor}, {"quant_method": method})
    with pytest.raises(UnsupportedModel, match=rf"quantized \({method}\).*({why})"):
        convert_checkpoint(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantized_source_is_not_cast(checkpoint: Checkpoint, tmp_path: Path):
    source = fp8(checkpoint("llama", **BF16))
    with pytest.raises(UsageError, match="--dtype"):
        convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(dtype="float32"))


def test_inspect_needs_no_library_of_the_method(checkpoint: Checkpoint):
    source = rewrite(checkpoint(), lambda name, tensor: {name: tensor}, {"quant_method": "eetq"})
    assert inspect_checkpoint(str(source)).foldable


def test_the_figures_say_that_they_are_those_of_unquantized_weights(checkpoint: Checkpoint, tmp_path: Path):
    source = fp8(checkpoint("llama", **BF16))
    inspected = inspect_checkpoint(str(source)).savings
    assert inspected.note == "weights are quantized (fp8): figures are those of unquantized ones"
    out = tmp_path / "out"
    savings = convert_checkpoint(str(source), out).inspection.savings
    assert savings.note.endswith("but for the checkpoint's bytes")
    stored = [sum(each.nbytes for file in folder.glob("*.safetensors") for each in load_file(file).values())
              for folder in (source, out)]  # fmt: skip
    assert [savings.checkpoint_before, savings.checkpoint_after] == stored
    assert savings.checkpoint_before < inspected.checkpoint_before


def test_a_sum_of_look_ups_is_refused_where_weights_are_quantized(checkpoint: Checkpoint, tmp_path: Path):
    source = rewrite(checkpoint("opt", **BF16), lambda name, tensor: {name: tensor}, {"quant_method": "fp8"})
    with pytest.raises(UnsupportedModel, match=r"quantized \(fp8\), and model.*_proj sees a sum of look-ups"):
        convert_checkpoint(str(source), tmp_path / "out")


def folded_figures(reads: int, unseen: list[str]) -> dict[str, Any]:
    return {"parameter_bytes": 0, "reads": dict.fromkeys(("1", "16", "64"), reads), "unseen": unseen}


@pytest.mark.parametrize(
    ("off", "unseen", "passed", "said"),
    [
        (0, [], True, "as measured in the folded modules"),
        (0, ["q_proj.scales"], True, "not compared: q_proj.scales is no parameter"),
        (1, [], False, "saved"),
        (1, ["q_proj.scales"], False, "saved"),
    ],
)
def test_what_is_saved_of_packed_weights_is_what_was_measured_of_them(off: int, unseen: list[str], passed, said: str):
    model = random_model(small_config("llama"))
    census = study_model(type(model), model.config).census
    before = dict.fromkeys(("1", "16", "64"), 10**6)
    after = {batch: 10**6 - 5000 + int(census.read_after(int(batch))) * 4 + off for batch in before}
    outcome = check_packed_reads(before, after, folded_figures(5000, unseen), census, 4)
    assert outcome.passed == passed
    assert said in outcome.summary
