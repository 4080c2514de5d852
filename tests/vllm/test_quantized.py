"""Quantized layers beside a folded one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vllm.checkpoints import fold
from tests.vllm.engines import answers, are_close

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def quantized(source, out):
    """Write a copy with the matrices of all layers in 8 bits, as compressed-tensors has them; activations follow."""
    out.mkdir()
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "layers" in name and tensor.dim() == 2:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    group = {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": _ACTIVATIONS}
    told = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed"}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = told | {"ignore": ["lm_head"], "config_groups": {"group_0": group}}
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_eight_bit_layers(checkpoint, tmp_path):
    """The source's first layer rounds its activations, the fold's does not: close, by vLLM's own rule."""
    source = quantized(checkpoint("llama") / "source", tmp_path / "source")
    folded = fold(source, tmp_path / "folded")
    pairs = list(zip(answers(source), answers(folded), strict=True))
    assert sum(are_close(one, other) for one, other in pairs) == len(pairs)
