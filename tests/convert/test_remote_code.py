"""Sources that bring their own model code."""

import json
from pathlib import Path

import pytest
import torch

from prefold.convert import UnsupportedModel, convert_checkpoint, inspect_checkpoint
from prefold.convert.files import REMOTE_RUNTIME
from tests.conftest import load, tokens

_CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
_MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out
"""


@pytest.fixture
def own_code(checkpoint) -> Path:
    """Return a checkpoint whose code lies beside its weights."""
    source = checkpoint("llama")
    (source / "configuration_own.py").write_text(_CONFIGURATION)
    (source / "modeling_own.py").write_text(_MODELING)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_code_is_not_run_unless_it_is_trusted(own_code: Path, tmp_path: Path):
    (own_code / "configuration_own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModel, match="brings its own code: read that, then pass --trust-remote-code"):
        convert_checkpoint(str(own_code), tmp_path / "out")
    assert not inspect_checkpoint(str(own_code)).foldable


def test_trusted_code_folds_and_says_the_same(own_code: Path, fold, tmp_path: Path):
    folded = fold(own_code, trust_remote_code=True)
    assert (folded / REMOTE_RUNTIME).exists()
    ids = tokens()
    model = load(folded)
    assert type(model).__name__ == "PrefoldOwnForCausalLM"
    assert torch.equal(load(own_code)(ids).logits, model(ids).logits)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(ids).logits, model(ids).logits)
