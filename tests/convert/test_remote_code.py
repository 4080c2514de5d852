"""Sources that bring their own model code."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from prefold.convert import BrokenCheckpoint, FoldOptions, UnsupportedModel, convert_checkpoint, inspect_checkpoint
from prefold.convert.checkpoint.files import REMOTE_RUNTIME
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
    assert type(model).__name__ == "OwnForCausalLM"
    assert torch.equal(load(own_code)(ids).logits, model(ids).logits)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(ids).logits, model(ids).logits)


def point(source: Path, **auto_map: object) -> None:
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] |= auto_map
    (source / "config.json").write_text(json.dumps(config))


def test_code_of_another_repository_is_refused(own_code: Path, tmp_path: Path):
    point(own_code, AutoTokenizer=["evil/repo--tokenization.Own", None])
    with pytest.raises(UnsupportedModel, match=r"part of another repository, evil/repo--tokenization\.Own"):
        convert_checkpoint(str(own_code), tmp_path / "out", options=FoldOptions(trust_remote_code=True))


def test_code_that_is_named_and_missing(own_code: Path, tmp_path: Path):
    point(own_code, AutoTokenizer=["tokenization_own.Own", None])
    with pytest.raises(BrokenCheckpoint, match=r"^tokenization_own\.py: is missing"):
        convert_checkpoint(str(own_code), tmp_path / "out", options=FoldOptions(trust_remote_code=True))


def test_code_that_leads_out_of_the_checkpoint(own_code: Path, tmp_path: Path):
    (own_code / "modeling_own.py").rename(tmp_path / "modeling_own.py")
    (own_code / "modeling_own.py").symlink_to(tmp_path / "modeling_own.py")
    with pytest.raises(BrokenCheckpoint, match=r"modeling_own\.py: a link that leads out"):
        convert_checkpoint(str(own_code), tmp_path / "out", options=FoldOptions(trust_remote_code=True))


def test_a_module_with_the_name_of_the_runtimes_is_refused(own_code: Path, tmp_path: Path):
    (own_code / "columns_prefold.py").write_text("")
    modeling = (own_code / "modeling_own.py").read_text()
    (own_code / "modeling_own.py").write_text(f"from .columns_prefold import *\n{modeling}")
    with pytest.raises(UnsupportedModel, match=r"columns_prefold\.py has the name of one that prefold writes"):
        convert_checkpoint(str(own_code), tmp_path / "out", options=FoldOptions(trust_remote_code=True))


def test_all_that_is_named_and_imported_goes_along(own_code: Path, fold):
    (own_code / "tokenization_own.py").write_text("from .helper_own import x\nclass Own: pass\n")
    (own_code / "helper_own.py").write_text("x = 1\n")
    (own_code / "train.py").write_text("x = 1\n")
    (own_code / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}})
    )
    folded = fold(own_code, trust_remote_code=True)
    assert {path.name for path in folded.glob("*_own.py")} == {
        "configuration_own.py",
        "helper_own.py",
        "modeling_own.py",
        "tokenization_own.py",
    }
    assert not (folded / "train.py").exists()
    assert json.loads((folded / "tokenizer_config.json").read_text())["auto_map"]


def test_a_registered_type_does_not_make_code_trusted(checkpoint, tmp_path: Path):
    """Once a program has registered a type, its config class is not transformers' own."""
    registered = type("Registered", (LlamaConfig,), {"model_type": "registered"})
    AutoConfig.register("registered", registered, exist_ok=True)
    source = checkpoint("llama")
    (source / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "registered", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (source / "config.json").write_text(json.dumps(config))
    assert not inspect_checkpoint(str(source)).foldable
    with pytest.raises(UnsupportedModel):
        convert_checkpoint(str(source), tmp_path / "out")


def test_a_part_of_a_config_that_names_code_is_refused(checkpoint, tmp_path: Path):
    source = checkpoint("llama")
    config = json.loads((source / "config.json").read_text())
    config["text_config"] = {"model_type": "trocr", "auto_map": {"AutoModel": "evil/repo--evil.Evil"}}
    (source / "config.json").write_text(json.dumps(config))
    assert "a part of its config.json names code" in inspect_checkpoint(str(source)).verdict
    trusted = inspect_checkpoint(str(source), options=FoldOptions(trust_remote_code=True))
    assert "part of another repository" in trusted.verdict


@pytest.mark.parametrize("auto_map", ["evil.X", [1], 3])
def test_an_auto_map_that_is_no_object(auto_map: object, checkpoint):
    source = checkpoint("llama")
    config = json.loads((source / "config.json").read_text()) | {"auto_map": auto_map}
    (source / "config.json").write_text(json.dumps(config))
    assert "an auto_map that is no object" in inspect_checkpoint(str(source)).verdict
