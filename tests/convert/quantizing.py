"""Small checkpoints in the on-disk formats of quantization methods, written without those methods' libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefold.convert.checkpoint.files import CONFIG, SINGLE

Tensors = dict[str, torch.Tensor]

GROUP = 16
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_AWQ_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], Tensors], config: dict[str, Any]) -> Path:
    """Replace every weight of a block's matrices by what ``change`` makes of it, and say so in the config."""
    tensors: Tensors = {}
    for name, tensor in load_file(folder / SINGLE).items():
        matrix = tensor.dim() > 1 and "layers" in name and not name.endswith(("gate.weight", "router.weight"))
        tensors |= change(name, tensor.float()) if matrix else {name: tensor}
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / SINGLE, metadata={"format": "pt"})
    said = json.loads((folder / CONFIG).read_text()) | {"quantization_config": config}
    (folder / CONFIG).write_text(json.dumps(said))
    return folder


def fp8(folder: Path, scales: torch.dtype = torch.float32) -> Path:
    """Block-scaled 8-bit floats, as DeepSeek's: ``weight`` and ``weight_scale_inv``."""

    def change(name: str, weight: torch.Tensor) -> Tensors:
        rows, columns = weight.shape
        blocks = weight.view(rows // GROUP, GROUP, columns // GROUP, GROUP)
        scale = (blocks.abs().amax((1, 3)) / 448).to(scales)
        small = (blocks / scale.float()[:, None, :, None]).view(rows, columns).clamp(-448, 448)
        return {name: small.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}

    config = {"quant_method": "fp8", "weight_block_size": [GROUP, GROUP], "modules_to_not_convert": ["lm_head"]}
    return rewrite(folder, change, config | {"activation_scheme": "dynamic"})


def mxfp4(folder: Path) -> Path:
    """4-bit floats in groups of 32, as gpt-oss's experts: ``_blocks`` and ``_scales``."""

    def change(name: str, weight: torch.Tensor) -> Tensors:
        if weight.dim() != 3:
            return {name: weight.bfloat16()}
        groups = weight.transpose(1, 2).unflatten(2, (-1, 32))
        exponent = torch.floor(torch.log2(groups.abs().amax(-1) / 6)) + 1
        codes = ((groups / exponent.exp2()[..., None])[..., None] - _FP4).abs().argmin(-1).to(torch.uint8)
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return {f"{name}_blocks": packed, f"{name}_scales": (exponent + 127).to(torch.uint8)}

    spared = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return rewrite(folder, change, {"quant_method": "mxfp4", "modules_to_not_convert": spared})


def _codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 4-bit codes ``[in, out]``, zeros and scales ``[groups, out]``."""
    groups = weight.t().unflatten(0, (-1, GROUP))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15)
    codes = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    return codes.flatten(0, 1), zeros, scales


def _packed(codes: torch.Tensor, dim: int) -> torch.Tensor:
    """Pack eight 4-bit codes along ``dim`` into one int32."""
    eights = codes.long().unflatten(dim, (-1, 8))
    shifts = torch.arange(0, 32, 4).view([8 if each == dim + 1 else 1 for each in range(3)])
    whole = (eights << shifts).sum(dim + 1)
    return torch.where(whole < 2**31, whole, whole - 2**32).int()


def gptq(folder: Path) -> Path:
    """4-bit integers as GPTQ's: ``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""

    def change(name: str, weight: torch.Tensor) -> Tensors:
        codes, zeros, scales = _codes(weight)
        parts = {"qweight": _packed(codes, 0), "qzeros": _packed(zeros - 1, 1), "scales": scales}
        parts["g_idx"] = (torch.arange(len(codes)) // GROUP).int()
        return {name.replace("weight", part): tensor for part, tensor in parts.items()}

    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
    return rewrite(folder, change, config | {"checkpoint_format": "gptq"})


def awq(folder: Path) -> Path:
    """4-bit integers as AWQ's: ``qweight``, ``qzeros`` and ``scales``."""

    def change(name: str, weight: torch.Tensor) -> Tensors:
        codes, zeros, scales = _codes(weight)
        ordered = [each.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1) for each in (codes, zeros)]
        parts = {"qweight": _packed(ordered[0], 1), "qzeros": _packed(ordered[1], 1), "scales": scales}
        return {name.replace("weight", part): tensor for part, tensor in parts.items()}

    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return rewrite(folder, change, config)
