"""Folded modules of a quantized checkpoint: they have no weights left that could be quantized."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod


@contextmanager
def spared(quantization: Any, folded: list[str], packed: dict[str, list[str]]) -> Iterator[None]:
    """Let vLLM build folded projections as if they were not quantized, whatever the rest is.

    Args:
        quantization: vLLM's quantization config, or None.
        folded: modules that are folded, by the source's names.
        packed: of vLLM's fused modules, the names of their parts.
    """
    if quantization is None:
        yield
        return
    own = quantization.get_quant_method

    def method_of(layer: torch.nn.Module, prefix: str) -> Any:
        parent, _, last = prefix.rpartition(".")
        parts = [f"{parent}.{part}." for part in packed.get(last, [last])]
        if isinstance(layer, LinearBase) and any(part.startswith(f"{name}.") for part in parts for name in folded):
            return UnquantizedLinearMethod()
        return own(layer, prefix)

    quantization.get_quant_method = method_of
    try:
        yield
    finally:
        del quantization.get_quant_method
