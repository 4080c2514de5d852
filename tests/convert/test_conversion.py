"""What a conversion writes."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file
from transformers import AutoModel

from prefold.convert import (
    ConversionProgress,
    FoldOptions,
    Inspection,
    OutputExists,
    StorageError,
    UsageError,
    convert_checkpoint,
)
from prefold.convert.checkpoint.files import CARD, INDEX, REPORT, RUNTIME, SOURCE_CARD, TABLE
from prefold.convert.checkpoint.source import open_folder
from tests.conftest import Checkpoint, all_bytes, auto_class, fold_options, load, random_model, small_config, tokens


def test_the_same_source_gives_the_same_bytes(checkpoint: Checkpoint, fold):
    source = checkpoint("gpt_neox", torch.bfloat16)
    assert all_bytes(fold(source, "one")) == all_bytes(fold(source, "two"))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 1000])
def test_the_table_does_not_depend_on_the_chunk(checkpoint: Checkpoint, fold, chunk_tokens: int):
    source = checkpoint("llama", torch.bfloat16)
    whole, chunked = (load_file(fold(source, str(c), chunk_tokens=c) / TABLE) for c in (97, chunk_tokens))
    (name,) = whole
    assert torch.equal(whole[name], chunked[name])


def test_untouched_tensors_keep_their_names_and_bytes(checkpoint: Checkpoint, fold):
    source = checkpoint("mixtral", max_shard_size="60KB")
    before, after = open_folder(source).entries, open_folder(fold(source)).entries
    gone = {f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv"} | {"model.layers.0.input_layernorm.weight"}
    assert after.keys() == before.keys() - gone
    for name in after.keys() - {"model.embed_tokens.weight"}:
        assert b"".join(after[name].chunks()) == b"".join(before[name].chunks())


def test_the_table_has_a_file_of_its_own_under_the_embeddings_name(checkpoint: Checkpoint, fold):
    folded = fold(checkpoint("llama"))
    weight_map = json.loads((folded / INDEX).read_text())["weight_map"]
    assert [name for name, file in weight_map.items() if file == TABLE] == ["model.embed_tokens.weight"]
    assert load_file(folded / TABLE)["model.embed_tokens.weight"].shape == (97, 32 + 32 + 16 + 16)


def test_the_config_says_how_to_load_it_and_keeps_the_rest(checkpoint: Checkpoint, fold):
    source = checkpoint("llama")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, fold(source)))
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"auto_map", "prefold"}
    assert after["auto_map"] == {
        "AutoModel": "modeling_prefold.LlamaModel",
        "AutoModelForCausalLM": "modeling_prefold.LlamaForCausalLM",
    }
    assert after["prefold"]["source"] == "source"
    assert [column["module"].rpartition(".")[2] for column in after["prefold"]["folds"][0]["columns"]] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]


def test_side_files_are_copied_verbatim_and_the_licence_is_carried(checkpoint: Checkpoint, fold):
    source = checkpoint("llama")
    side = {
        "LICENSE": "do as you like",
        "tokenizer.json": '{"odd":   "spacing"}',
        "chat_template.jinja": "{{ x }}",
        CARD: "---\nlicense: apache-2.0\nlanguage: en\n---\n# Source\n",
    }
    for name, text in side.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    folded = fold(source)
    for name, text in side.items():
        assert (folded / (SOURCE_CARD if name == CARD else name)).read_text() == text
    card = (folded / CARD).read_text()
    assert "license: apache-2.0" in card
    assert "prefold convert source OUT" in card
    assert "not verified" in card


def test_a_card_keeps_what_the_hub_decides_by(checkpoint: Checkpoint, fold):
    source = checkpoint("llama")
    kept = {"library_name": "sentence-transformers", "pipeline_tag": "feature-extraction", "datasets": ["a", "b"]}
    front = ModelCardData(**kept, tags=["x", "prefold"], license="mit", widget=[{"text": "y"}])
    (source / CARD).write_text(f"---\n{front.to_yaml()}\n---\n")
    said = ModelCard((fold(source) / CARD).read_text()).data.to_dict()
    assert said == kept | {"license": "mit", "tags": ["x", "prefold"]}


@pytest.mark.parametrize(
    ("model_type", "changes", "dtype"),
    [
        ("t5", {"feed_forward_proj": "gated-gelu"}, torch.float16),
        ("deepseek_v3", {}, torch.bfloat16),
    ],
)
def test_what_stays_float32_keeps_its_values(checkpoint: Checkpoint, tmp_path: Path, model_type, changes, dtype):
    source = checkpoint(model_type, **changes)
    folded = convert_checkpoint(str(source), tmp_path / "out", options=fold_options(dtype=dtype)).out
    one, other = (auto_class(model_type).from_pretrained(each, dtype=dtype) for each in (source, folded))
    kept = {name: each for name, each in one.state_dict().items() if each.dtype == torch.float32}
    assert kept
    assert all(torch.equal(other.state_dict()[name], each) for name, each in kept.items())


def test_a_card_does_not_guess_a_licence(checkpoint: Checkpoint, fold):
    assert "license" not in (fold(checkpoint("llama")) / CARD).read_text().split("---")[1]


def test_the_runtime_module_is_copied_verbatim(checkpoint: Checkpoint, fold):
    from prefold.runtime import modeling_prefold

    assert (fold(checkpoint("llama")) / RUNTIME).read_bytes() == Path(modeling_prefold.__file__).read_bytes()


def test_shards_are_repacked_on_request(checkpoint: Checkpoint, fold):
    source = checkpoint("llama")
    folded = fold(source, max_shard_size=20_000)
    shards = sorted(folded.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(f"of-{len(shards):05d}" in shard.name for shard in shards)
    ids = tokens()
    assert torch.equal(load(source)(ids).logits, load(folded)(ids).logits)


def test_dtype_casts_table_and_all_the_rest(checkpoint: Checkpoint, fold):
    source = checkpoint("llama", torch.float32)
    folded = fold(source, dtype="bfloat16")
    assert {entry.dtype for entry in open_folder(folded).entries.values()} == {"BF16"}
    ids = tokens()
    assert torch.equal(load(source, dtype=torch.bfloat16)(ids).logits, load(folded)(ids).logits)


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "bloom"])
def test_a_tied_head_keeps_the_sources_embedding(checkpoint: Checkpoint, fold, model_type: str):
    source = checkpoint(model_type, torch.bfloat16)
    folded = fold(source)
    assert json.loads((folded / "config.json").read_text())["tie_word_embeddings"] is False
    head = load(folded).get_output_embeddings().weight
    assert torch.equal(head, load(source).get_input_embeddings().weight)


def test_a_base_models_checkpoint_without_prefixes_folds(tmp_path: Path, fold):
    """It folds as what it says that it is, a model without a head."""
    model = random_model(small_config("gemma2"))
    model.model.save_pretrained(tmp_path / "source")
    assert "embed_tokens.weight" in open_folder(tmp_path / "source").entries
    folded = fold(tmp_path / "source")
    assert "embed_tokens.weight" in open_folder(folded).entries
    ids = tokens()
    said = [
        AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(ids).last_hidden_state
        for folder in (tmp_path / "source", folded)
    ]
    assert torch.equal(*said)


def test_a_base_models_checkpoint_that_names_a_model_with_a_head_folds_as_that(tmp_path: Path, fold):
    model = random_model(small_config("gemma2"))
    model.model.save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["architectures"] = ["Gemma2ForCausalLM"]
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    folded = fold(tmp_path / "source")
    ids = tokens()
    assert torch.equal(load(tmp_path / "source")(ids).logits, load(folded)(ids).logits)


class Recorder(ConversionProgress):
    def __init__(self) -> None:
        self.verdicts: list[str] = []
        self.done: dict[str, tuple[int, int]] = {}

    def inspected(self, inspection: Inspection) -> None:
        assert not self.done
        self.verdicts.append(inspection.verdict)

    def advanced(self, stage: str, done: int, total: int) -> None:
        self.done[stage] = (self.done.get(stage, (0, 0))[0] + done, total)


def test_the_verdict_comes_first_and_progress_adds_up(checkpoint: Checkpoint, tmp_path: Path):
    recorder = Recorder()
    convert_checkpoint(str(checkpoint("llama")), tmp_path / "out", progress=recorder)
    assert len(recorder.verdicts) == 1
    table, table_total = recorder.done["table"]
    assert table == table_total == 97 * 96 * 4
    assert recorder.done["untouched tensors"][0] <= recorder.done["untouched tensors"][1]


def test_the_report_lies_in_the_checkpoint(checkpoint: Checkpoint, fold):
    told = json.loads((fold(checkpoint("llama")) / REPORT).read_text())
    assert told["inspection"]["foldable"] is True
    assert told["verification"] is None


def test_a_failed_check_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path):
    source = checkpoint("llama")

    def refuse(*_: object) -> None:
        raise ValueError("not good enough")

    with pytest.raises(ValueError, match="not good enough"):
        convert_checkpoint(str(source), tmp_path / "out", check=refuse)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["source"]


def test_too_little_space_is_told_before_the_first_byte(checkpoint: Checkpoint, tmp_path: Path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"are needed and 0\.00 GB are free"):
        convert_checkpoint(str(checkpoint("llama")), tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_the_source_is_never_replaced(checkpoint: Checkpoint, tmp_path: Path):
    source = checkpoint("llama")
    before = all_bytes(source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "config.json").write_text("{}")  # so that the folder above looks like an older output, too
    for out in (source, tmp_path / "link", tmp_path):
        with pytest.raises((UsageError, OutputExists)):
            convert_checkpoint(str(source), out, options=FoldOptions(force=True))
    assert all_bytes(source) == before


def test_an_existing_output_is_refused_before_the_source_is_read(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(OutputExists):
        convert_checkpoint(str(tmp_path / "no such source"), tmp_path / "out")
