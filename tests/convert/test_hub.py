"""Checkpoints on the hub, against a server on this machine that speaks its API."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from prefold.convert import (
    BrokenCheckpoint,
    FoldOptions,
    HubError,
    UnsupportedModel,
    UsageError,
    convert_checkpoint,
    inspect_checkpoint,
)
from prefold.convert.checkpoint.hub import fetch_files
from prefold.convert.checkpoint.source import open_source
from tests.convert.conftest import Call
from tests.hub_server import HubServer, read_folder

pytestmark = pytest.mark.usefixtures("forget_requests")

# What a repository may hold beside the checkpoint that is folded.
FOREIGN = dict.fromkeys(
    [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.Q4_K_M.gguf",
        "onnx/model.onnx", "onnx/model.onnx_data", "original/consolidated.00.pth", "model.fp16.safetensors",
        ".gitattributes", ".eval_results/one.yaml", "original/params.json", "custom_generate/generate.py", "train.py",
    ],
    b"not to be fetched",
)  # fmt: skip


def fetched(server: HubServer, repo: str) -> set[str]:
    return {name for _, name in server.resolved(repo)}


def told(folded: Path) -> dict[str, Any]:
    return json.loads((folded / "config.json").read_text())


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_repository_folds_as_the_same_folder_does(
    kind: str, request: pytest.FixtureRequest, server: HubServer, call: Call, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(kind)
    files = read_folder(source)
    commit = server.add(f"org/{kind}", files | FOREIGN)

    call(convert_checkpoint, f"org/{kind}", tmp_path / "remote")
    call(convert_checkpoint, str(source), tmp_path / "local")

    assert fetched(server, f"org/{kind}") == set(files)  # no less, and nothing foreign
    assert {revision for revision, _ in server.resolved(f"org/{kind}")} == {commit}
    remote, local = read_folder(tmp_path / "remote"), read_folder(tmp_path / "local")
    assert remote.keys() == local.keys()
    told_of_source = {"config.json", "README.md", "prefold.json"}
    assert {name for name in local if remote[name] != local[name]} <= told_of_source
    config = told(tmp_path / "remote")
    assert (config["prefold"].pop("source"), config["prefold"].pop("revision")) == (f"org/{kind}", commit)
    expected = told(tmp_path / "local")
    del expected["prefold"]["source"], expected["prefold"]["revision"]
    assert config == expected
    assert "base_model: org/" in remote["README.md"].decode()


def test_a_branch_that_moves_does_not_mix_two_commits(
    sharded: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    files = read_folder(sharded)
    commit = server.add("org/moving", files, branch="feature/x")
    repository = server.repositories["org/moving"]
    other = {name: data[::-1] for name, data in files.items()}
    repository.listed = lambda: repository.commit(other, "feature/x")

    call(convert_checkpoint, "org/moving", tmp_path / "remote", revision="feature/x")
    call(convert_checkpoint, str(sharded), tmp_path / "local")

    assert repository.branches["feature/x"] != commit
    named = [request for request in server.requests if commit not in request]
    assert named == ["GET /api/models/org/moving/revision/feature%2Fx"]
    assert told(tmp_path / "remote")["prefold"]["revision"] == commit
    remote, local = read_folder(tmp_path / "remote"), read_folder(tmp_path / "local")
    assert {name for name in local if name.endswith(".safetensors") and remote[name] != local[name]} == set()


def test_inspect_fetches_the_config_alone(single: Path, server: HubServer, call: Call) -> None:
    commit = server.add("org/inspected", read_folder(single) | FOREIGN)
    remote = call(inspect_checkpoint, "org/inspected").as_json()
    assert set(server.resolved("org/inspected")) == {(commit, "config.json")}
    local = call(inspect_checkpoint, str(single / "config.json")).as_json()
    assert (remote.pop("model"), remote.pop("revision")) == ("org/inspected", commit)
    del local["model"], local["revision"]
    assert remote == local


def test_inspect_fetches_the_code_that_a_config_needs(single: Path, server: HubServer, call: Call) -> None:
    config = json.loads((single / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    code = b"""from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
    server.add("org/own", read_folder(single) | {"config.json": json.dumps(config).encode(), "own.py": code})
    assert "--trust-remote-code" in call(inspect_checkpoint, "org/own").verdict
    assert call(inspect_checkpoint, "org/own", options=FoldOptions(trust_remote_code=True)).foldable
    assert fetched(server, "org/own") == {"config.json", "own.py"}


@pytest.mark.parametrize(
    ("model", "revision", "error", "reason"),
    [
        ("org/absent", None, HubError, "no such repository"),
        ("absent", None, HubError, "no such folder, and no such repository"),
        ("org/there", "absent", HubError, "no such revision"),
        ("org/there", "0" * 40, HubError, "no such revision"),
        ("org/gated", None, HubError, "gated"),
        ("no such thing", None, UsageError, "no such folder, and not the id of a repository"),
        ("org//name", None, UsageError, "no such file or folder"),
        ("org/name/more", None, UsageError, "no such file or folder"),
        ("./absent", None, UsageError, "no such file or folder"),
        ("org/empty", None, UsageError, "not a checkpoint"),
    ],
)
@pytest.mark.parametrize("function", [inspect_checkpoint, open_source])
def test_what_cannot_be_opened_is_told_in_one_line(
    function: Call, model: str, revision: str | None, error: type[Exception], reason: str,
    single: Path, server: HubServer, call: Call,
) -> None:  # fmt: skip
    server.add("org/there", read_folder(single))
    server.add("org/empty", {"README.md": b""})
    server.add("org/gated", read_folder(single), gated=set(read_folder(single)))
    with pytest.raises(error, match=reason) as caught:
        call(function, model, revision=revision)
    assert model in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pickles_are_refused_by_their_names(server: HubServer, call: Call, tmp_path: Path, single: Path) -> None:
    server.add("org/pickles", {"config.json": (single / "config.json").read_bytes(), "pytorch_model.bin": b"code"})
    with pytest.raises(UnsupportedModel, match=r"only pytorch_model\.bin.*save_pretrained"):
        call(convert_checkpoint, "org/pickles", tmp_path / "out")
    assert server.resolved("org/pickles") == []
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fold_is_refused_before_its_weights_are_fetched(
    single: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    config = json.loads((single / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    server.add("org/quantized", read_folder(single) | {"config.json": json.dumps(config).encode()})
    with pytest.raises(UnsupportedModel, match="awq"):
        call(convert_checkpoint, "org/quantized", tmp_path / "out")
    assert fetched(server, "org/quantized") == {"config.json"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": "model-00009-of-00009.safetensors"}}, "00009.safetensors, which is missing"),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "which is missing"),
        ({"weight_map": {"a": "*"}}, "which is missing"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "not a JSON object"),
    ],
)  # fmt: skip
def test_a_broken_index_fetches_no_weights(
    index: Any, reason: str, sharded: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    changed = {"model.safetensors.index.json": json.dumps(index).encode()}
    server.add("org/broken", read_folder(sharded) | changed)
    with pytest.raises(BrokenCheckpoint, match=reason):
        call(convert_checkpoint, "org/broken", tmp_path / "out")
    assert not [name for name in fetched(server, "org/broken") if name.endswith(".safetensors")]


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server: HubServer, call: Call) -> None:
    data = os.urandom(24 << 20)  # the client keeps what it has in pieces of 10 MiB
    commit = server.add("org/cut", {"model.safetensors": data}, cut={"model.safetensors"})
    folder = call(fetch_files, "org/cut", commit, ["model.safetensors"])
    assert f"GET /org/cut/resolve/{commit}/model.safetensors bytes={10 << 20}-" in server.requests
    assert (folder / "model.safetensors").read_bytes() == data


def test_a_file_that_the_hub_does_not_give_is_missed(single: Path, server: HubServer, call: Call) -> None:
    commit = server.add("org/less", read_folder(single))
    with pytest.raises(HubError, match=r"did not give tokenizer\.json"):
        call(fetch_files, "org/less", commit, ["config.json", "tokenizer.json"])


def test_the_next_run_fetches_what_an_interrupted_one_lacks(
    sharded: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    files = read_folder(sharded)
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    server.add("org/interrupted", files, gated={shards[-1]})
    with pytest.raises(HubError, match="gated"):
        call(convert_checkpoint, "org/interrupted", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    server.repositories["org/interrupted"].gated.clear()
    kept = fetched(server, "org/interrupted") - {shards[-1]}
    server.requests.clear()
    call(convert_checkpoint, "org/interrupted", tmp_path / "out")
    assert fetched(server, "org/interrupted").isdisjoint(kept)
    assert shards[-1] in fetched(server, "org/interrupted")
    assert (tmp_path / "out" / "config.json").exists()


def offline(function: Any, *args: Any) -> Any:
    """Run with ``HF_HUB_OFFLINE``, which the client reads when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return function(*args)


def test_a_cached_repository_folds_offline(single: Path, server: HubServer, call: Call, tmp_path: Path) -> None:
    commit = server.add("org/cached", read_folder(single))
    call(snapshot_download, "org/cached")
    call(convert_checkpoint, str(single), tmp_path / "before")
    server.requests.clear()
    assert call(offline, inspect_checkpoint, "org/cached").foldable
    call(offline, convert_checkpoint, "org/cached", tmp_path / "after")
    assert server.requests == []
    assert told(tmp_path / "after")["prefold"]["revision"] == commit
    before, after = read_folder(tmp_path / "before"), read_folder(tmp_path / "after")
    assert all(after[name] == content for name, content in before.items() if name.endswith(".safetensors"))


def test_what_is_not_cached_is_told_offline(call: Call, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="org/uncached"):
        call(offline, convert_checkpoint, "org/uncached", tmp_path / "out")
