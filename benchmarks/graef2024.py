"""The tables of Graef 2024 (arXiv 2402.13388v3), computed again: ``python -m benchmarks.graef2024``.

The paper's Mixtral is hypothetical: attention and FFN of its blocks are parallel. Here its block is made so.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

from benchmarks.page import table
from prefold.convert.checkpoint.source import open_config
from prefold.convert.fold.reads import ParameterReads
from prefold.convert.model.load import load_config, resolve_model
from prefold.convert.options import FoldOptions
from prefold.convert.savings import PaperFigures, paper_figures
from prefold.convert.study import study_model

CONFIGS = Path(__file__).parents[1] / "tests" / "configs"
MODELS = ("pythia-6.9b", "mistral-7b", "mixtral-8x7b")


class ParallelLayer(MixtralDecoderLayer):
    """A block whose FFN does not wait for its attention."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Add both to the residual."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))  # type: ignore[no-any-return]


class ParallelMixtral(MixtralForCausalLM):
    """Mixtral with such blocks."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.__class__ = ParallelLayer


def census_of(name: str) -> ParameterReads:
    """Return what a step reads of a model's parameters, the FFN merged into the residual as in the paper."""
    source = open_config(str(CONFIGS / f"{name}.json"))
    config = load_config(source)
    model_class = ParallelMixtral if name.startswith("mixtral") else resolve_model(source, config).model_class
    return study_model(model_class, config, FoldOptions(merge_residual=True)).census


def _row(name: str, figures: PaperFigures) -> list[str]:
    memory = (figures.weights_eliminated, figures.embedding_memory_increase, figures.net_memory_change)
    ratios = " / ".join(f"{reads.ratio:,}" for reads in figures.reads)
    return [name, *(f"{each:,}" for each in memory), f"{figures.relative_to_total:.0%}", ratios]


def main() -> None:
    """Print the figures."""
    head = ["", "weights eliminated", "embedding increase", "net change", "of all weights"]
    head += ["first layer's reads, times fewer at batch 1 / 16 / 256 / 1,024"]
    sys.stdout.write(table(head, [_row(name, paper_figures(census_of(name))) for name in MODELS]) + "\n")


if __name__ == "__main__":
    main()
