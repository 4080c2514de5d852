"""The models that are measured: real shapes with random weights, built where they are needed and removed afterwards."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

# Of a safetensors file: its first bytes say how long the header is.
_LENGTH, _PAGE = 8, 4096


@dataclass(frozen=True)
class Shape:
    """A model to be built.

    Attributes:
        name: what the page calls it.
        model_type: transformers' name of the architecture.
        settings: of its config.
        dtype: of its weights.
    """

    name: str
    model_type: str
    settings: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16

    def changed(self, name: str, **settings: Any) -> "Shape":
        """Return the same model with other settings."""
        return replace(self, name=name, settings=self.settings | settings)

    def of(self, dtype: torch.dtype) -> "Shape":
        """Return the same model with weights of another type."""
        return replace(self, dtype=dtype)


def _pythia(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 50304,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 4096,
    }


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 4096,
    }


def _phi(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 51200,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 8192,
    }


PYTHIA_70M = Shape("Pythia-70M", "gpt_neox", _pythia(512, 6, 8))
PYTHIA_160M = Shape("Pythia-160M", "gpt_neox", _pythia(768, 12, 12))
PYTHIA_410M = Shape("Pythia-410M", "gpt_neox", _pythia(1024, 24, 16))
PYTHIA_6_9B = Shape("Pythia-6.9B", "gpt_neox", _pythia(4096, 32, 32))
PHI_1_5 = Shape("Phi-1.5", "phi", _phi(2048, 24, 32))
QWEN = Shape("Qwen-like, 0.5B", "qwen2", _llama(151936, 896, 4864, 24, 14, 2) | {"tie_word_embeddings": True})
MISTRAL = Shape("Mistral-7B", "mistral", _llama(32000, 4096, 14336, 32, 32, 8))
DRAFT = Shape("Llama draft model, 2 layers (68M)", "llama", _llama(32000, 768, 3072, 2, 12, 12))
SERIAL = Shape("Llama-like, 24 layers", "llama", _llama(32000, 1024, 2816, 24, 16, 8))
LARGE = Shape("Llama-like, 1.1B", "llama", _llama(32000, 2048, 5632, 22, 32, 4))
WIDE = Shape("Llama-like, hidden 1024", "llama", _llama(32000, 1024, 4096, 4, 16, 8))
LARGE_TABLE = Shape("Llama-like, 262,144 tokens", "llama", _llama(262144, 1024, 2816, 2, 16, 16))


def build(shape: Shape, folder: Path) -> Path:
    """Save a checkpoint with random weights, its tensors aligned as a folded one's, and return its folder."""
    source = save(shape, folder)
    align(source)
    return source


def save(shape: Shape, folder: Path, device: str = "cpu", **how: Any) -> Path:
    """Save a checkpoint with random weights, drawn on a device, as transformers does, and return its folder."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.model_type, **shape.settings)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype)
    source = folder / "source"
    model.save_pretrained(source, **how)
    return source


def align(checkpoint: Path) -> None:
    """Let the tensors of every file begin on a page, as a folded checkpoint's do.

    A file is mapped as it lies, and a product with a matrix that begins at any 8 bytes is slower than with one that
    begins at 64. That is nothing that folding gains, and so it must not be in the figures of it.
    """
    for file in checkpoint.glob("*.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        padding = -(_LENGTH + length) % _PAGE
        header = struct.pack("<Q", length + padding) + content[_LENGTH : _LENGTH + length] + b" " * padding
        file.write_bytes(header + content[_LENGTH + length :])


@contextmanager
def built(shape: Shape) -> Iterator[Path]:
    """Build a checkpoint in a temporary folder; other files may be put beside it."""
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        yield build(shape, Path(folder))
