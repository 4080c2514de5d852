"""A folded checkpoint loads like any other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from prefold.runtime import modeling_prefold
from tests.conftest import EXACT, asked_for, load, some, tokens
from tests.runtime.pairs import Pair, exact_logits, logits, make_pair, rounding_error

NAMES = some(EXACT, "llama", "mixtral", "gpt_neox", "gemma3n_text")


@pytest.fixture(scope="module")
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    names = [name for name in EXACT if name in {"llama", "mixtral", *asked_for(request, "name")}]
    return {name: make_pair(tmp_path_factory.mktemp(name), name, torch.bfloat16) for name in names}


@pytest.fixture(scope="module")
def pair(pairs: dict[str, Pair]) -> Pair:
    return pairs["llama"]


def _saved(pair: Pair, folder: Path, **options: Any) -> Path:
    pair.folded.save_pretrained(folder, **options)
    return folder


def _run(arguments: list[str], folder: Path) -> None:
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def elsewhere(pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process saw that has no prefold, of every folded checkpoint and of one that was saved again."""
    folder = tmp_path_factory.mktemp("elsewhere")
    checkpoints = {name: pair.folded_folder for name, pair in pairs.items()}
    checkpoints["saved again"] = _saved(pairs["llama"], folder / "saved again")
    checkpoints["saved in shards"] = _saved(pairs["mixtral"], folder / "saved in shards", max_shard_size="40KB")
    torch.save(tokens(), folder / "ids.pt")
    script = Path(__file__).with_name("isolated.py")
    _run(["-I", str(script), str(folder), str(folder / "ids.pt"), *map(str, checkpoints.values())], folder)
    seen, made = json.loads((folder / "seen.json").read_text()), torch.load(folder / "logits.pt")
    assert not seen["prefold"]
    return {name: seen["checkpoints"][str(path)] | {"logits": made[str(path)]} for name, path in checkpoints.items()}


@pytest.mark.parametrize("name", [*NAMES, "saved again", "saved in shards"])
def test_loads_without_prefold(elsewhere: dict[str, Any], pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[{"saved again": "llama", "saved in shards": "mixtral"}.get(name, name)]
    assert elsewhere[name]["keys"] == []
    assert elsewhere[name]["class"] == type(pair.source).__name__
    assert elsewhere[name]["module"].startswith("transformers_modules.")
    assert torch.equal(elsewhere[name]["logits"].flatten(0, 1), logits(pair.source, tokens()))


@pytest.mark.parametrize("name", [*NAMES, "saved again"])
def test_refuses_to_load_without_prefold_and_without_trust(elsewhere: dict[str, Any], name: str) -> None:
    """With random weights it would run, and say nonsense; the table is wider than any embedding."""
    assert "ignore_mismatched_sizes" in elsewhere[name]["untrusted"]


_REGISTERED = """
import sys, torch, prefold.runtime
from transformers import AutoModelForCausalLM
ids, *checkpoints = sys.argv[1:]
torch.set_num_threads(1)
for checkpoint in checkpoints:
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__ == "prefold.runtime.modeling_prefold", type(model)
    torch.save(model.eval()(input_ids=torch.load(ids)).logits.detach(), checkpoint + ".pt")
assert "prefold.convert" not in sys.modules
"""


def test_loads_without_trust_after_importing_the_runtime(pairs: dict[str, Pair], tmp_path: Path) -> None:
    torch.save(tokens(), tmp_path / "ids.pt")
    folders = [str(pair.folded_folder) for pair in pairs.values()]
    _run(["-c", _REGISTERED, str(tmp_path / "ids.pt"), *folders], tmp_path)
    for pair, folder in zip(pairs.values(), folders, strict=True):
        assert torch.equal(torch.load(f"{folder}.pt").flatten(0, 1), logits(pair.source, tokens()))


def test_saving_again_keeps_every_tensor(pair: Pair, tmp_path: Path) -> None:
    again = load(_saved(pair, tmp_path / "saved")).state_dict()
    before = pair.folded.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_saving_again_keeps_the_runtime_module(pair: Pair, tmp_path: Path) -> None:
    saved = _saved(pair, tmp_path / "saved")
    assert (saved / "modeling_prefold.py").read_bytes() == (pair.folded_folder / "modeling_prefold.py").read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (pair.folded_folder, saved))
    for key in ("model_type", "architectures", "auto_map", "prefold", "tie_word_embeddings"):
        assert after[key] == before[key]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mamba"])
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded in", "cast to"])
def test_another_dtype_rounds_no_worse_than_the_source(name: str, loaded: bool, tmp_path: Path) -> None:
    """The source rounds its weights and then multiplies; the table was multiplied and then rounded."""
    pair, dtype, ids = make_pair(tmp_path, name), torch.bfloat16, tokens(8, 24)
    truth = exact_logits(pair.source, ids)
    folded = load(pair.folded_folder, dtype=dtype) if loaded else pair.folded.to(dtype)
    assert {parameter.dtype for parameter in folded.parameters()} == {
        p.dtype for p in pair.source.to(dtype).parameters()
    }
    assert rounding_error(folded, truth, ids) <= 1.1 * rounding_error(pair.source, truth, ids)


@pytest.mark.parametrize("device_map", ["cpu", "auto", "sequential", {"": "cpu"}], ids=str)
def test_device_map_gives_the_same_logits(pair: Pair, device_map: Any) -> None:
    assert torch.equal(logits(load(pair.folded_folder, device_map=device_map), tokens()), logits(pair.source, tokens()))


@pytest.mark.parametrize("on_disk", ["embed_tokens", "layers.0", "layers.2", "everything"])
def test_parts_mapped_to_disk_give_the_same_logits(pair: Pair, on_disk: str, tmp_path: Path) -> None:
    parts = ["embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb"]
    places = {f"model.{part}": "disk" if on_disk in (part, "everything") else "cpu" for part in parts} | {
        "lm_head": "cpu"
    }
    model = load(pair.folded_folder, device_map=places, offload_folder=tmp_path)
    assert model.hf_device_map == places
    assert torch.equal(logits(model, tokens()), logits(pair.source, tokens()))
    assert model.prefold_rows[0].values is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon"])
def test_head_of_a_tied_source_keeps_the_embedding(name: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, name, torch.bfloat16, tie_word_embeddings=True)
    assert pair.source.config.tie_word_embeddings
    assert pair.source.get_output_embeddings().weight is pair.source.get_input_embeddings().weight
    assert AutoConfig.from_pretrained(pair.folded_folder, trust_remote_code=True).tie_word_embeddings is False
    assert torch.equal(pair.folded.get_output_embeddings().weight, pair.source.get_input_embeddings().weight)
    assert pair.folded.get_output_embeddings().weight is not pair.folded.get_input_embeddings().weight
    assert torch.equal(logits(pair.folded, tokens()), logits(pair.source, tokens()))
    again = load(_saved(pair, tmp_path / "saved"))
    assert torch.equal(logits(again, tokens()), logits(pair.source, tokens()))


def _stored_names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118


@pytest.mark.parametrize("saved", [False, True], ids=["folded", "saved again"])
def test_experts_keep_the_names_of_the_source(pairs: dict[str, Pair], saved: bool, tmp_path: Path) -> None:
    """Transformers loads them under other names than those in the checkpoint."""
    pair = pairs["mixtral"]
    source = {name for name in _stored_names(pair.source_folder) if ".experts." in name}
    folder = _saved(pair, tmp_path / "saved") if saved else pair.folded_folder
    assert len(source) == 3 * 4 * 3
    assert not source & dict(pair.folded.named_parameters()).keys()
    assert source < _stored_names(folder) < _stored_names(pair.source_folder)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the runtime warns of: transformers' loggers hand nothing on, and warn of nothing twice."""
    modeling_prefold._logger.warning_once.cache_clear()
    modeling_prefold._logger.addHandler(caplog.handler)
    caplog.set_level("WARNING", modeling_prefold._logger.name)
    yield caplog
    modeling_prefold._logger.removeHandler(caplog.handler)


def test_rows_of_another_type_than_was_asked_for_warn(pair: Pair, warned: pytest.LogCaptureFixture) -> None:
    load(pair.folded_folder)
    assert "a fold of" not in warned.text
    load(pair.folded_folder, dtype=torch.float32)
    assert "a fold of bfloat16, loaded as float32: not equal to its source loaded as float32" in warned.text
    assert "prefold convert source OUT --dtype float32" in warned.text


@pytest.mark.parametrize("version", ["4.57.6", "4.9.0", "3.0"])
def test_a_transformers_that_is_too_old_is_named(version: str) -> None:
    with pytest.raises(ImportError, match=f"tried with transformers 5.0 to .*, and this is {version}"):
        modeling_prefold._check_version(version)


def test_a_transformers_that_was_not_tried_warns(warned: pytest.LogCaptureFixture) -> None:
    modeling_prefold._check_version("5.0.0")
    modeling_prefold._check_version("5.24.1")
    assert not warned.text
    modeling_prefold._check_version("5.100.0.dev0")
    assert "and this is 5.100.0.dev0" in warned.text


def test_the_sources_own_class_loads_a_fold(pair: Pair) -> None:
    model = type(pair.source).from_pretrained(pair.folded_folder, dtype="auto").eval()
    assert torch.equal(logits(model, tokens()), logits(pair.source, tokens()))
    assert type(type(pair.source).from_pretrained(pair.source_folder)) is type(pair.source)
    with pytest.raises(OSError, match="nowhere"):
        type(pair.source).from_pretrained(pair.source_folder / "nowhere")
