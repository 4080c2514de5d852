"""torch.export of a fold: a graph that says what the source's graph says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import auto_class, some, tokens
from tests.runtime.clients.checkpoints import folded, text_checkpoint
from tests.runtime.clients.ways import STOCK, Way


class _Logits(torch.nn.Module):
    """What is exported: token ids in, logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of ``[batch, seq]`` ids."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def _exported(checkpoint: Path, way: Way, model_type: str) -> Any:
    model = auto_class(model_type).from_pretrained(checkpoint, **way.options)
    way.require(model)
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=100)}
    return torch.export.export(_Logits(model), (tokens(),), dynamic_shapes=(sizes,)).module()


@pytest.mark.parametrize("model_type", some(["gpt_neox", "gpt2", "llama"], "gpt_neox"))
def test_exported_fold_says_what_its_source_says(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    one, other = _exported(source, STOCK, model_type), _exported(folded(source), way, model_type)
    for ids in (tokens(), tokens(batch=3, length=7)):
        torch.testing.assert_close(other(ids), one(ids), rtol=1e-5, atol=1e-5)
