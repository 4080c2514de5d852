"""Every architecture passes ``convert`` and ``verify``: one of each kind of block, side and look-up."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefold.convert import convert_checkpoint
from prefold.verify import Verification, verify_checkpoint
from tests.conftest import SUMS, exhaustive, random_model, small_config

# What else than attention with rotary positions and projections that see the token alone.
MODELS = [
    "t5",
    "modernbert",
    "mamba2",
    "jamba",
    "qwen3_5_text",
    "deepseek_v2",
    "deepseek_v3",
    "gemma3n_text",
    "gemma4_text",
    *SUMS,
]
# One of each: two sides, an encoder, a state space, latent attention, tables of its own, a sum, a decoder of sounds.
KINDS = ("t5", "modernbert", "mamba2", "deepseek_v3", "gemma4_text", "gpt2", "whisper")
SIDES = {"t5": ["encoder", "decoder"], "bart": ["model.encoder", "model.decoder"], "whisper": ["model.decoder"]}
ENCODERS = {"bert", "roberta", "longformer", "squeezebert", "ibert", "modernbert"}


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [
        *((name, torch.float32) if name in KINDS else exhaustive(name, torch.float32) for name in MODELS),
        *(exhaustive(name, torch.bfloat16) for name in ("gpt2", "bert", "bart")),
    ],
    ids=lambda each: str(each).removeprefix("torch."),
)
def test_it_converts_and_verifies(model_type: str, dtype: torch.dtype, tmp_path: Path):
    random_model(small_config(model_type), dtype).save_pretrained(tmp_path / "source")
    savings = convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded").inspection.savings
    assert savings is not None
    assert [side.side for side in savings.sides] == SIDES.get(model_type, [""])
    assert savings.unfolded == []
    assert savings.exact is (model_type not in SUMS)
    verification = verify_checkpoint(str(tmp_path / "source"), tmp_path / "folded")
    assert verification.passed, verification.as_markdown()
    assert_measured(verification, model_type)


def assert_measured(verification: Verification, model_type: str) -> None:
    """Demand that a pass was not for want of anything to compare."""
    logits = verification.checks["logits"].figures
    assert ("greedy" in verification.checks) is (model_type not in ENCODERS)
    assert ("step" in logits) is (model_type not in ENCODERS)
    assert ("error_ratio" in logits) is (model_type in SUMS)
    if model_type in SUMS:
        assert logits["source_error"]["nmse"] > 0
        assert logits["error_ratio"] <= 1.05
        assert any(".prefold." in name for name in verification.checks["rows"].figures["max_abs_difference"])


def as_published(model_type: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors as older programs wrote them: other names, and heads that nobody asks for."""
    if model_type == "gpt2":
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return bare | {"h.0.attn.bias": torch.ones(1, 1, 128, 128).tril()}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    pooler = {"bert.pooler.dense.weight": torch.zeros(32, 32), "bert.pooler.dense.bias": torch.zeros(32)}
    return (
        old | pooler | {"cls.seq_relationship.weight": torch.zeros(2, 32), "cls.seq_relationship.bias": torch.zeros(2)}
    )


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
def test_checkpoints_as_they_were_published_verify(model_type: str, tmp_path: Path):
    source = tmp_path / "source"
    random_model(small_config(model_type)).save_pretrained(source)
    file = source / "model.safetensors"
    save_file(as_published(model_type, load_file(file)), file, metadata={"format": "pt"})
    convert_checkpoint(str(source), tmp_path / "folded")
    verification = verify_checkpoint(str(source), tmp_path / "folded")
    assert verification.passed, verification.as_markdown()
