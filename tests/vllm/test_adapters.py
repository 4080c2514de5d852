"""Adapters of what is not folded work; others are refused with the names of the folded modules."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.vllm.engines import engine, say, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

_RANK = 4
_SIZES = {"q_proj": (128, 128), "v_proj": (128, 64), "o_proj": (128, 128), "down_proj": (192, 128)}
_ALLOWED = ("model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj")


def adapter(folder, modules):
    """Write a LoRA over some projections of the small Llama, and return its folder."""
    folder.mkdir()
    generator, weights = torch.Generator().manual_seed(0), {}
    for module in modules:
        wide, out = _SIZES[module.rpartition(".")[2]]
        weights[f"base_model.model.{module}.lora_A.weight"] = torch.randn(_RANK, wide, generator=generator) / 8
        weights[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, _RANK, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    targets = sorted({module.rpartition(".")[2] for module in modules})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 8, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def request(folder, number=1):
    from vllm.lora.request import LoRARequest

    return LoRARequest(folder.name, number, str(folder))


def test_an_adapter_beside_the_fold(checkpoint, tmp_path):
    asked, folder = request(adapter(tmp_path / "beside", _ALLOWED)), checkpoint("llama")
    said = {}
    for side in ("source", "folded"):
        with engine(folder / side, enable_lora=True, max_lora_rank=8) as llm:
            said[side] = tokens(say(llm, lora_request=asked)), tokens(say(llm))
    assert said["folded"] == said["source"]
    assert said["folded"][0] != said["folded"][1]


def test_an_adapter_of_what_is_folded(checkpoint, tmp_path):
    """It is refused by name with the request, and when it is loaded beforehand; the engine serves on."""
    from vllm.exceptions import VLLMValidationError

    inside = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    asked = request(adapter(tmp_path / "inside", (*inside, *_ALLOWED)))
    with engine(checkpoint("llama") / "folded", enable_lora=True, max_lora_rank=8) as llm:
        before = tokens(say(llm))
        for refused in (lambda: say(llm, lora_request=asked), lambda: llm.llm_engine.add_lora(asked)):
            with pytest.raises(VLLMValidationError, match=f"inside: {inside[0]}, {inside[1]}: folded into the table"):
                refused()
        assert tokens(say(llm)) == before


def test_a_server_that_is_started_with_such_an_adapter(checkpoint, tmp_path):
    """It does not start, and says which modules are folded."""
    inside = "model.layers.0.self_attn.q_proj"
    folder = adapter(tmp_path / "inside", (inside,))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint("llama") / "folded"]
    command += ["--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "192", "--dtype", "float32"]
    command += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"inside={folder}"]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode
    assert f"adapter inside: {inside}: folded into the table" in done.stdout + done.stderr
