"""Opening a checkpoint: whatever is wrong with its files is told before any work."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prefold.convert import BrokenCheckpoint, PrefoldError, UnsupportedModel, UsageError, convert_checkpoint
from prefold.convert.checkpoint.files import INDEX, SINGLE
from prefold.convert.checkpoint.source import open_source
from prefold.verify import require_verified
from tests.conftest import Checkpoint


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_index(folder: Path, name: str, file: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != name} | ({name: file} if file else {})
    (folder / INDEX).write_text(json.dumps(index))


def assert_refused(source: Path, error: type[PrefoldError], match: str) -> None:
    """Convert, expecting an error and nothing left behind."""
    out = source.parent / "out"
    before = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(error, match=match):
        convert_checkpoint(str(source), out)
    assert sorted(path.name for path in source.parent.iterdir()) == before


@pytest.fixture
def sharded(checkpoint: Checkpoint) -> Path:
    folder = checkpoint("llama", max_shard_size="40KB")
    assert (folder / INDEX).exists()
    return folder


def test_a_sharded_checkpoint_opens_whole(sharded: Path):
    names = set(json.loads((sharded / INDEX).read_text())["weight_map"])
    assert set(open_source(str(sharded)).entries) == names


def test_no_such_path(tmp_path: Path):
    with pytest.raises(UsageError, match="no such"):
        convert_checkpoint(str(tmp_path / "nothing"), tmp_path / "out")


def test_a_folder_without_config(tmp_path: Path):
    (tmp_path / "source").mkdir()
    assert_refused(tmp_path / "source", UsageError, "not a checkpoint: it has no config.json")


def test_a_config_that_is_no_json(checkpoint: Checkpoint):
    source = checkpoint()
    (source / "config.json").write_text("{")
    assert_refused(source, BrokenCheckpoint, "config.json: not JSON")


def test_a_folder_whose_name_is_no_utf8(checkpoint: Checkpoint):
    source = checkpoint()
    renamed = source.rename(source.with_name(os.fsdecode(b"na\xffme")))
    assert_refused(renamed, UsageError, "not UTF-8")


def test_pickled_weights_are_refused_unread(checkpoint: Checkpoint):
    source = checkpoint()
    (source / SINGLE).unlink()
    (source / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert_refused(source, UnsupportedModel, "no safetensors weights.*may run code.*save_pretrained")


def test_an_adapter_alone(tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "adapter_config.json").write_text("{}")
    assert_refused(tmp_path / "source", UnsupportedModel, "an adapter alone: merge it")


def test_no_weights_at_all(checkpoint: Checkpoint):
    source = checkpoint()
    (source / SINGLE).unlink()
    assert_refused(source, UnsupportedModel, "no weights")


def test_an_index_that_names_a_missing_shard(sharded: Path):
    next(sharded.glob("model-00002-*")).unlink()
    assert_refused(sharded, BrokenCheckpoint, "names model-00002.* which is missing")


def loaded_by_transformers(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_of_an_index_the_names_of_files_count(sharded: Path, tmp_path: Path):
    """As transformers has it: a name without a tensor is passed over, a tensor without a name is loaded."""
    edit_index(sharded, "extra.weight", next(sharded.glob("model-00001-*")).name)
    edit_index(sharded, "model.norm.weight", None)
    conversion = convert_checkpoint(str(sharded), tmp_path / "out", check=require_verified())
    (shard,) = [note.partition(":")[0] for note in conversion.notes if "model.norm.weight is not in the index" in note]
    assert conversion.notes == [
        f"{INDEX}: names extra.weight, which no shard holds",
        f"{shard}: model.norm.weight is not in the index",
    ]
    assert conversion.as_json()["notes"] == conversion.notes


def test_of_a_tensor_in_two_shards_the_last_counts(sharded: Path, tmp_path: Path):
    first, last = sorted(sharded.glob("model-*.safetensors"))[:: len(list(sharded.glob("model-*.safetensors"))) - 1]
    name = next(iter(load_file(first)))
    save_file(load_file(last) | {name: torch.full_like(load_file(first)[name], 7)}, last, metadata={"format": "pt"})
    assert loaded_by_transformers(sharded)[name].eq(7).all()
    conversion = convert_checkpoint(str(sharded), tmp_path / "out", check=require_verified())
    assert f"{last.name}: {name} lies in an earlier shard, too: this one counts" in conversion.notes


def test_shards_without_an_index(sharded: Path):
    (sharded / INDEX).unlink()
    assert_refused(sharded, UnsupportedModel, "neither model.safetensors nor model.safetensors.index.json, which says")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs(checkpoint: Checkpoint, name: str):
    source = checkpoint("llama")
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_refused(source, BrokenCheckpoint, f"{name}: a Git-LFS pointer in place of the file: run git lfs pull")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_a_file_of_weights_is_no_model(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"GGUF")
    assert_refused(tmp_path / name, UsageError, "a file of weights: a checkpoint is a folder")


def test_a_folder_has_no_revision(checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(UsageError, match="has no --revision"):
        convert_checkpoint(str(checkpoint("llama")), tmp_path / "out", revision="main")


@pytest.mark.parametrize(
    ("wide", "dtype"), [("norm", torch.bfloat16), ("embed", torch.bfloat16), ("lm_head", torch.float32)]
)
def test_a_config_without_a_type_loads_as_transformers_does(
    checkpoint: Checkpoint, tmp_path: Path, wide: str, dtype: Any
):
    source = checkpoint("llama", torch.bfloat16)
    tensors = {name: each.float() if wide in name else each for name, each in load_file(source / SINGLE).items()}
    save_file(tensors, source / SINGLE, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "dtype"}))
    assert AutoModelForCausalLM.from_pretrained(source).dtype == dtype
    folded = convert_checkpoint(str(source), tmp_path / "out", check=require_verified()).out
    assert json.loads((folded / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("path", ["../elsewhere.safetensors", "/elsewhere.safetensors", "a/../../b.safetensors"])
def test_an_index_that_leaves_the_folder(sharded: Path, path: str):
    edit_index(sharded, "model.norm.weight", path)
    assert_refused(sharded, BrokenCheckpoint, "outside the checkpoint")


def test_a_shard_cut_short(sharded: Path):
    shard = next(sharded.glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert_refused(sharded, BrokenCheckpoint, "model-00002.*cut short")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_weight_with_the_wrong_shape(checkpoint: Checkpoint, name: str):
    source = checkpoint()
    tensors = load_file(source / SINGLE)
    save_file(tensors | {name: torch.zeros(3, 3)}, source / SINGLE, metadata={"format": "pt"})
    assert_refused(source, BrokenCheckpoint, rf"{name}: has shape \[3, 3\]")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"])
def test_a_missing_weight(checkpoint: Checkpoint, name: str):
    source = checkpoint()
    tensors = load_file(source / SINGLE)
    del tensors[name]
    save_file(tensors, source / SINGLE, metadata={"format": "pt"})
    assert_refused(source, BrokenCheckpoint, f"{name}: the checkpoint has no such tensor")


def test_a_row_that_is_not_finite(checkpoint: Checkpoint):
    source = checkpoint()
    tensors = load_file(source / SINGLE)
    tensors["model.layers.0.self_attn.k_proj.weight"][3, 4] = torch.nan
    save_file(tensors, source / SINGLE, metadata={"format": "pt"})
    assert_refused(source, BrokenCheckpoint, r"token 0: model\.layers\.0\.self_attn\.k_proj is not finite")


def test_a_quantized_source_is_refused_by_the_methods_name(checkpoint: Checkpoint):
    source = checkpoint()
    edit(source / "config.json", quantization_config={"quant_method": "gptq"})
    assert_refused(source, UnsupportedModel, "quantized \\(gptq\\)")


def test_an_already_folded_checkpoint(checkpoint: Checkpoint, fold):
    folded = fold(checkpoint())
    shutil.rmtree(folded.parent / "source")
    assert_refused(folded, UnsupportedModel, "folded checkpoint already")


def test_a_multimodal_model(tmp_path: Path):
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path / "source")
    save_file({"a": torch.zeros(1)}, tmp_path / "source" / SINGLE)
    assert_refused(tmp_path / "source", UnsupportedModel, "it takes pixel_values beside text: .*--text-only folds it")


def test_an_encoder_decoder_that_lacks_its_weights(tmp_path: Path):
    from transformers import T5Config

    T5Config(num_layers=1, d_model=64, d_ff=64).save_pretrained(tmp_path / "source")
    save_file({"a": torch.zeros(1)}, tmp_path / "source" / SINGLE)
    assert_refused(tmp_path / "source", BrokenCheckpoint, "shared.weight: the checkpoint has no such tensor")


def test_what_is_no_language_model(checkpoint: Checkpoint):
    from transformers import PatchTSTConfig

    source = checkpoint()
    PatchTSTConfig().save_pretrained(source)
    assert_refused(source, UnsupportedModel, "its vocabulary has 0 ordinary tokens")


def test_all_reasons_are_told_at_once(checkpoint: Checkpoint):
    source = checkpoint()
    edit(source / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"}, prefold={})
    with pytest.raises(UnsupportedModel) as refusal:
        convert_checkpoint(str(source), source.parent / "out")
    assert len(refusal.value.reasons) == 2


def test_an_unknown_model_type(checkpoint: Checkpoint):
    source = checkpoint()
    edit(source / "config.json", model_type="nobody_knows_this")
    assert_refused(source, UnsupportedModel, "nobody_knows_this")


@pytest.mark.parametrize("name", ["weights.bin", "custom_generate/generate.py", ".git/w.safetensors"])
def test_a_shard_that_would_be_unpickled_or_is_hidden(sharded: Path, name: str):
    first = next(sharded.glob("model-00001-*"))
    (sharded / name).parent.mkdir(exist_ok=True)
    text = (sharded / INDEX).read_text().replace(first.name, name)
    first.rename(sharded / name)
    (sharded / INDEX).write_text(text)
    assert_refused(sharded, BrokenCheckpoint, "is no safetensors file")


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"---\n- a\n---\n", b"---\n!!python/object:os.system {}\n---\n", b"---\ntags: 3\n---\n"]
)
def test_a_card_that_does_not_parse_goes_along_as_it_is(checkpoint: Checkpoint, tmp_path: Path, text: bytes):
    source = checkpoint()
    (source / "README.md").write_bytes(text)
    assert (convert_checkpoint(str(source), tmp_path / "out").out / "README.source.md").read_bytes() == text
