"""What goes along with a source's weights, and what does not: code, links out of the checkpoint, anything else."""

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.models
from safetensors.torch import save_file
from torch import zeros

from prefold.convert import BrokenCheckpoint, Conversion, FoldOptions, UnsupportedModel, UsageError, convert_checkpoint
from prefold.convert.checkpoint.files import CARD, REPORT, SOURCE_CARD, is_side_file
from tests.conftest import Checkpoint

Convert = Callable[..., Conversion]
TYPE = "sentence_transformers.models"


@pytest.fixture
def source(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama")


@pytest.fixture
def convert(source: Path, tmp_path: Path) -> Convert:
    return lambda **options: convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(**options))


def add(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_that_a_tokenizer_of_transformers_reads_goes_along():
    """The rule goes by formats; the library's own table of names is what it must cover."""
    read = set[str]()
    for package in pkgutil.iter_modules(transformers.models.__path__):
        for module in pkgutil.iter_modules([str(Path(transformers.models.__path__[0]) / package.name)]):
            if module.name.startswith("tokenization_"):
                try:
                    found = importlib.import_module(f"transformers.models.{package.name}.{module.name}")
                except (ImportError, NameError):  # wants a library that is not installed
                    continue
                read |= set(getattr(found, "VOCAB_FILES_NAMES", {}).values())
    assert len(read) > 20
    assert [name for name in sorted(read) if not is_side_file(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "prefold.json", "README.source.md", "adapter_config.json", "model.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin.index.json", "other.safetensors", "modeling_prefold.py",
        "tokenization.py", "LICENSE.py", "custom_generate/generate.py", "custom_generate/requirements.txt",
        "checkpoint-500/tokenizer.json", ".env", ".git/config.json", "__pycache__/a.json", "run.sh", "a.so",
        "training_args.bin", "additional_chat_templates/a.py", "1_Pooling/config.json",
    ],
)  # fmt: skip
def test_what_does_not_go_along(name: str):
    assert not is_side_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "vocab.txt", "qwen.tiktoken", "chat_template.jinja", "generation_config.json", "README.md",
        "LICENSE", "LICENCE.txt", "LICENSE-MIT", "NOTICE", "USE_POLICY.md", "preprocessor_config.json",
        "additional_chat_templates/rag.jinja", "modules.json", "config_sentence_transformers.json",
    ],
)  # fmt: skip
def test_what_goes_along(name: str):
    assert is_side_file(name)


def test_what_is_left_out_is_named_folders_as_one(source: Path, convert: Convert):
    add(source, **{"train.py": "", "runs/a/b.json": "{}", "runs/c": "", "notes.md": "kept", "pytorch_model.bin": ""})
    conversion = convert()
    assert conversion.left_out == ["pytorch_model.bin", "runs/", "train.py"]
    assert conversion.as_json()["left_out"] == conversion.left_out
    assert (conversion.out / "notes.md").read_text() == "kept"


def test_code_of_a_source_is_never_copied(source: Path, convert: Convert):
    evil = ["custom_generate/generate.py", "modeling_prefold.py", "columns_prefold.py", "a.py", "tokenization_a.py"]
    add(source, **dict.fromkeys(evil, "raise SystemExit('ran')"))
    folded = convert().out
    assert "custom_generate/generate.py" not in names(folded)
    assert not {"a.py", "tokenization_a.py"} & names(folded)
    assert not any("SystemExit('ran')" in path.read_text() for path in folded.glob("*.py"))


def test_configs_beside_the_model_no_longer_name_code(source: Path, convert: Convert):
    add(
        source,
        **{
            "tokenizer_config.json": json.dumps({"model_max_length": 7, "auto_map": {"AutoTokenizer": ["a.A", None]}}),
            "preprocessor_config.json": json.dumps({"auto_map": {"AutoProcessor": "evil/repo--a.A"}, "ü": 1}),
            "processor_config.json": json.dumps({"image_processor": {"size": 1, "auto_map": {"A": "evil/repo--a.A"}}}),
        },
    )
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": "evil/repo--a.A", "AutoModelForCausalLM": "evil/repo--a.B"}
    (source / "config.json").write_text(json.dumps(config))
    folded = convert().out
    assert json.loads((folded / "tokenizer_config.json").read_text()) == {"model_max_length": 7}
    assert json.loads((folded / "preprocessor_config.json").read_text()) == {"ü": 1}
    assert json.loads((folded / "processor_config.json").read_text()) == {"image_processor": {"size": 1}}
    assert not any("evil" in path.read_text() for path in folded.glob("*.json"))


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "other files by configuration_files"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "other files by transformers_weights"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "code of another repository as attn_implementation"),
        ("config.json", {"part": {"_attn_implementation": {"": "evil/kernel"}}}, "code of another repository as _attn"),
        ("config.json", {"_attn_implementation_internal": "evil/kernel"}, "code of another repository as _attn"),
        ("tokenizer_config.json", {"a": [{"configuration_files": []}]}, "other files by configuration_files"),
        ("a.json", {"model_args": {"adapter_kwargs": {"subfolder": "1"}}}, "other files by adapter_kwargs"),
    ],
)
@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_config_that_leads_elsewhere_is_refused(
    file: str, change: dict[str, Any], why: str, source: Path, convert: Convert, *, trust_remote_code: bool
):
    before = json.loads((source / file).read_text()) if (source / file).exists() else {}
    add(source, **{file: json.dumps(before | change)})
    with pytest.raises(UnsupportedModel, match=why):
        convert(trust_remote_code=trust_remote_code)


def test_a_config_of_another_version_of_transformers_names_no_code_either(source: Path, convert: Convert):
    config = json.loads((source / "config.json").read_text())
    add(source, **{"config.4.0.0.json": json.dumps(config | {"auto_map": {"AutoConfig": "evil/repo--a.A"}})})
    assert json.loads((convert().out / "config.4.0.0.json").read_text()) == config


def test_pipelines_of_its_own_do_not_go_along(source: Path, convert: Convert):
    config = json.loads((source / "config.json").read_text())
    own = {"custom_pipelines": {"task": {"impl": "evil/repo--a.A", "pt": ["AutoModelForCausalLM"], "type": "text"}}}
    add(source, **{"config.json": json.dumps(config | own), "tokenizer_config.json": json.dumps(own)})
    folded = convert().out
    assert not any("evil" in path.read_text() for path in folded.glob("*.json"))


@pytest.mark.parametrize("text", ["{}" + " " * 100_000_000, "[" * 100_000])
def test_a_config_that_only_others_might_read_is_refused(text: str, source: Path, convert: Convert):
    add(source, **{"tokenizer_config.json": text})
    with pytest.raises(BrokenCheckpoint, match=r"larger than|nests too deep"):
        convert()


@pytest.mark.parametrize("text", ["[1]", "{", "", "3"])
def test_a_config_beside_the_model_may_be_anything(text: str, source: Path, convert: Convert):
    add(source, **{"data_config.json": text})
    assert (convert().out / "data_config.json").read_text() == text


def test_a_side_file_that_leads_out_of_the_checkpoint_is_not_read(source: Path, convert: Convert, tmp_path: Path):
    (tmp_path / "secret").write_text("key")
    (source / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BrokenCheckpoint, match=r"^vocab\.txt: a link that leads out of the checkpoint"):
        convert()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_nor_is_the_config_or_a_weight(name: str, source: Path, convert: Convert, tmp_path: Path):
    (source / name).rename(tmp_path / name)
    (source / name).symlink_to(tmp_path / name)
    with pytest.raises(BrokenCheckpoint, match="a link that leads out of the checkpoint"):
        convert()


def test_a_link_inside_the_checkpoint_is_followed(source: Path, convert: Convert):
    add(source, **{"vocab.txt": "a"})
    (source / "other.txt").symlink_to("vocab.txt")
    folded = convert().out
    assert (folded / "other.txt").read_text() == "a"
    assert not (folded / "other.txt").is_symlink()


def test_a_snapshot_in_the_hubs_cache_has_its_files_elsewhere_in_it(source: Path, tmp_path: Path):
    """As the hub's client lays a repository out: names in ``snapshots`` that lead to contents in ``blobs``."""
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    add(source, **{"vocab.txt": "a"})
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in sorted(source.iterdir()):
        path.rename(cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert (convert_checkpoint(str(snapshot), tmp_path / "out").out / "vocab.txt").read_text() == "a"
    (tmp_path / "secret").write_text("key")
    (snapshot / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BrokenCheckpoint, match=r"merges\.txt: a link"):
        convert_checkpoint(str(snapshot), tmp_path / "again")


def test_names_that_prefold_writes_are_its_own(source: Path, convert: Convert):
    add(source, **{REPORT: "theirs", SOURCE_CARD: "other", CARD: "---\nlicense: mit\n---\nthe card"})
    conversion = convert()
    assert conversion.left_out == [SOURCE_CARD, REPORT]
    assert "the card" in (conversion.out / SOURCE_CARD).read_text()
    assert "license: mit" in (conversion.out / CARD).read_text()
    assert json.loads((conversion.out / REPORT).read_text())["inspection"]["foldable"]


def test_an_output_below_the_source_is_no_part_of_it(source: Path, tmp_path: Path):
    convert_checkpoint(str(source), source / "folded")
    second = convert_checkpoint(str(source), source / "again")
    assert second.left_out == ["folded/"]
    assert not any(path.is_dir() for path in (source / "again").iterdir())


def test_an_adapter_beside_the_weights_is_refused_since_transformers_would_apply_it(source: Path, convert: Convert):
    add(source, **{"adapter_config.json": json.dumps({"base_model_name_or_path": "evil/repo"})})
    with pytest.raises(UnsupportedModel, match="pass it as --adapter"):
        convert()


@pytest.fixture
def sentence_source(checkpoint: Checkpoint) -> Path:
    """Return a text encoder with a projection of its own behind it."""
    source = checkpoint("bert")
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
    modules = [{"idx": i, "path": path, "type": f"{TYPE}.{name}"} for i, (name, path) in enumerate(paths.items())]
    dense = {"activation_function": "torch.nn.modules.activation.Tanh"}
    add(
        source,
        **{
            "modules.json": json.dumps(modules),
            "1_Pooling/config.json": "{}",
            "2_Dense/config.json": json.dumps(dense),
            "2_Dense/pytorch_model.bin": "pickled",
            "2_Dense/own.py": "raise SystemExit('ran')",
            "3_Unnamed/config.json": "{}",
        },
    )
    save_file({"linear.weight": zeros(2, 2)}, source / "2_Dense" / "model.safetensors")
    return source


def test_the_modules_of_a_sentence_encoder_go_along_with_their_weights(sentence_source: Path, tmp_path: Path):
    conversion = convert_checkpoint(str(sentence_source), tmp_path / "out")
    inside = {name for name in names(conversion.out) if "/" in name}
    assert inside == {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert conversion.left_out == ["2_Dense/own.py", "2_Dense/pytorch_model.bin", "3_Unnamed/"]


def test_the_config_of_a_module_loses_the_code_that_it_names(sentence_source: Path, tmp_path: Path):
    add(sentence_source, **{"1_Pooling/config.json": json.dumps({"a": 1, "auto_map": {"AutoModel": "evil/repo--a.A"}})})
    folded = convert_checkpoint(str(sentence_source), tmp_path / "out").out
    assert json.loads((folded / "1_Pooling" / "config.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("modules.json", json.dumps([{"path": "", "type": "own.Module"}])),
        ("modules.json", json.dumps([{"path": "2_Dense", "type": "evil/repo--own.Module"}])),
        ("2_Dense/config.json", json.dumps({"activation_function": "os.abort"})),
        ("modules.json", json.dumps([{"path": "", "type": "torch.evil/repo--own.Module"}])),
        ("modules.json", json.dumps([{"path": "a.bin", "type": "torch.nn.parameter.torch"}])),
        ("2_Dense/config.json", json.dumps({"type": "sentence_transformers.util.distributed.pickle"})),
        ("router_config.json", json.dumps({"types": {"a": "evil/repo--own.Module"}})),
        ("sentence_bert_config.json", json.dumps({"tokenizer_name_or_path": "evil/repo"})),
        ("2_Dense/wordembedding_config.json", json.dumps({"tokenizer_class": "own.Tokenizer"})),
        ("2_Dense/router_config.json", json.dumps({"types": {"a": "evil/repo--own.Module"}})),
    ],
)
def test_modules_of_their_own_code_are_refused_without_trust(
    name: str, text: str, sentence_source: Path, tmp_path: Path
):
    add(sentence_source, **{name: text})
    with pytest.raises(UnsupportedModel, match="read that, then pass --trust-remote-code to run it"):
        convert_checkpoint(str(sentence_source), tmp_path / "out")


def test_an_adapter_among_the_modules_is_refused(sentence_source: Path, tmp_path: Path):
    """The library would load the model that it names, and with trust the code of that."""
    add(sentence_source, **{"2_Dense/adapter_config.json": '{"base_model_name_or_path": "evil/repo"}'})
    for trust in (False, True):
        with pytest.raises(UnsupportedModel, match="an adapter among the modules"):
            convert_checkpoint(str(sentence_source), tmp_path / "out", options=FoldOptions(trust_remote_code=trust))
    assert not is_side_file("2_Dense/adapter_config.json", ["2_Dense"])


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b"])
def test_a_module_out_of_the_checkpoint_is_refused(path: str, sentence_source: Path, tmp_path: Path):
    add(sentence_source, **{"modules.json": json.dumps([{"path": path, "type": f"{TYPE}.Dense"}])})
    with pytest.raises(BrokenCheckpoint, match="lies outside the checkpoint"):
        convert_checkpoint(str(sentence_source), tmp_path / "out")


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"path": 3}]', "["])
def test_a_list_of_modules_that_is_none(text: str, sentence_source: Path, tmp_path: Path):
    add(sentence_source, **{"modules.json": text})
    with pytest.raises(BrokenCheckpoint, match=r"^modules\.json: "):
        convert_checkpoint(str(sentence_source), tmp_path / "out")


def test_a_module_in_the_adapters_folder_is_refused(sentence_source: Path, tmp_path: Path):
    add(sentence_source, **{"modules.json": json.dumps([{"path": "adapter", "type": f"{TYPE}.Dense"}])})
    with pytest.raises(UnsupportedModel, match="which prefold writes itself"):
        convert_checkpoint(str(sentence_source), tmp_path / "out")


def test_an_output_among_the_modules_is_refused(sentence_source: Path):
    with pytest.raises(UsageError, match="lies among the source's side files"):
        convert_checkpoint(str(sentence_source), sentence_source / "2_Dense" / "out")
