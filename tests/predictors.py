"""Checkpoints with a layer of multi-token prediction beside the model's own, laid out as published ones are."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class _Layout:
    """Names in a checkpoint, with ``{layers}`` for the number of layers before.

    Attributes:
        block: the prefix of the layer's block.
        like: the layer whose weights the block is made of, counted from the last.
        projection: of the token's embedding and the hidden state, side by side.
    """

    block: str
    like: int
    projection: str
    norms: tuple[str, ...]


_LAYER = "model.layers.{layers}."
_DEEPSEEK = _Layout(_LAYER, 1, f"{_LAYER}eh_proj", (f"{_LAYER}enorm", f"{_LAYER}hnorm", f"{_LAYER}shared_head.norm"))
_LAYOUTS = {
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "ernie4_5_moe": _Layout(
        "model.mtp_block.0.", 3, "model.mtp_linear_proj.0", ("model.mtp_emb_norm.0", "model.mtp_hidden_norm.0")
    ),
}


def add_predictor(source: Path, model_type: str, layers: int) -> None:
    """Add a layer that predicts one more token to a saved model of ``layers``, made of its own weights."""
    file, layout = source / "model.safetensors", _LAYOUTS[model_type]
    tensors = load_file(file)
    like, (_, size) = f"model.layers.{layers - layout.like}.", tensors["model.embed_tokens.weight"].shape
    made = {name.replace(like, layout.block): each.clone() for name, each in tensors.items() if name.startswith(like)}
    made |= {f"{norm}.weight": torch.ones(size) for norm in layout.norms}
    made[f"{layout.projection}.weight"] = torch.cat([torch.eye(size)] * 2, 1)
    made = {name.format(layers=layers): each for name, each in made.items()}
    save_file(tensors | made, file, metadata={"format": "pt"})
