"""The state of a model whose table lies elsewhere: what it is, what loads into it, how it is saved and copied."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from prefold.convert import FoldOptions
from prefold.convert.checkpoint.files import RUNTIMES
from prefold.runtime import TableError
from tests.conftest import auto_class, load, tokens
from tests.runtime.pairs import logits, make_folded
from tests.runtime.placing import ELSEWHERE, PLACEMENTS, load_each, table_keys, tables

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "bfloat16": {"model_type": "mixtral", "dtype": torch.bfloat16},
    "sum": {"model_type": "gpt2"},
    "two tables": {"model_type": "bart"},
    "smaller rows": {"model_type": "llama", "options": FoldOptions(table_dtype="int8")},
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_each(make_folded(tmp_path_factory.mktemp("kinds"), **KINDS[request.param]))


def test_state_has_the_table_under_its_name(models: dict[str, Any]) -> None:
    states = {placement: model.state_dict() for placement, model in models.items()}
    keys = table_keys(models["device"])
    for placement in ELSEWHERE:
        model, state = models[placement], states[placement]
        assert state.keys() == states["device"].keys()
        assert all(torch.equal(values, states["device"][name]) for name, values in state.items())
        assert not set(keys) & dict(model.named_parameters()).keys()
        gone = sum(states["device"][key].numel() for key in keys)
        assert models["device"].num_parameters() - model.num_parameters() == gone
        assert model.get_memory_footprint() <= models["device"].get_memory_footprint() - gone
        assert {parameter.dtype for parameter in model.parameters()} == {model.dtype}


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_own_state_loads_and_another_table_does_not(llama: Path, placed: dict[str, Any], placement: str) -> None:
    model = load(llama, prefold_placement=placement)
    (key,) = table_keys(model)
    for state in (model.state_dict(), placed["device"].state_dict()):
        assert not any(model.load_state_dict(state))
    other = state[key].clone()
    other[7, 3] += 1
    for wrong in (other, other[:5]):
        with pytest.raises(RuntimeError, match=rf"{key}: the table is not on the device"):
            model.load_state_dict(state | {key: wrong})
    assert torch.equal(logits(model, tokens()), logits(placed["device"], tokens()))


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_model_made_of_a_config_alone_has_no_table(llama: Path, placement: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(llama)
    model = AutoModelForCausalLM.from_config(config, prefold_placement=placement).eval()
    for use in (lambda: model(input_ids=tokens()), lambda: model.save_pretrained(tmp_path / "saved")):
        with pytest.raises(TableError, match=r"model.embed_tokens: its table was not loaded: .* from_pretrained"):
            use()
    assert not (tmp_path / "saved").exists()


def test_tensors_instead_of_files(placed: dict[str, Any]) -> None:
    model, state = placed["device"], placed["device"].state_dict()
    kind, (key,) = type(model), table_keys(model)

    def loaded(placement: str, state: dict[str, torch.Tensor]) -> Any:
        config = copy.deepcopy(model.config)
        return kind.from_pretrained(None, config=config, state_dict=state, prefold_placement=placement).eval()

    assert torch.equal(logits(loaded("host", state), tokens()), logits(model, tokens()))
    with pytest.raises(TableError, match="'disk': weights were given as tensors, and no file"):
        loaded("disk", state)
    for wrong in ({name: values for name, values in state.items() if name != key}, state | {key: state[key][:, 1:]}):
        with pytest.raises(TableError, match=rf"{key}: no tensor \[97, 96\] of this name was given"):
            loaded("host", wrong)


SAVES: dict[str, dict[str, Any]] = {"one file": {}, "shards": {"max_shard_size": "20KB"}}


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    files = [safe_open(file, "pt") for file in folder.glob("*.safetensors")]
    return {name: file.get_tensor(name) for file in files for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_saved_from_one_placement_it_loads_in_each(
    models: dict[str, Any], placement: str, save: dict[str, Any], tmp_path: Path
) -> None:
    model, state = models[placement], models["device"].state_dict()
    model.save_pretrained(tmp_path, **save)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == bool(save)
    assert all(key in _stored(tmp_path) for key in table_keys(model))
    assert all((tmp_path / name).exists() for name in RUNTIMES)
    kind = auto_class(model.config.model_type)
    for each in PLACEMENTS:
        again, told = kind.from_pretrained(
            tmp_path, trust_remote_code=True, dtype="auto", output_loading_info=True, prefold_placement=each
        )
        assert not any(told.values())
        after = again.state_dict()
        assert after.keys() == state.keys()
        assert all(torch.equal(after[name], values) for name, values in state.items())


@pytest.mark.parametrize("cast", [True, False], ids=["cast", "edited"])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_table_that_was_changed_and_saved_loads_in_each(name: str, cast: bool, tmp_path: Path) -> None:
    """What is saved is hashed anew: it is no longer what was computed, and is nobody's fault."""
    folder = make_folded(tmp_path, name, torch.bfloat16)
    model = load(folder, **({"dtype": torch.float32} if cast else {}))
    if not cast:
        tables(model)[0].weight.data[3] += 1
    model.save_pretrained(tmp_path / "saved")
    before, after = (json.loads((each / "config.json").read_text())["prefold"] for each in (folder, tmp_path / "saved"))
    assert before.pop("tensor_sha256") != after.pop("tensor_sha256")
    assert before == after
    for each in load_each(tmp_path / "saved").values():
        assert torch.equal(each.state_dict()[table_keys(each)[0]], tables(model)[0].weight)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folded": lambda folder: folder,
    "one file": lambda folder: _saved(folder),
    "shards": lambda folder: _saved(folder, max_shard_size="20KB"),
}
TARGETS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "the folder": lambda folder, file, scratch: folder,
    "a string": lambda folder, file, scratch: f"{folder}/../{folder.name}/",
    "a link to the folder": lambda folder, file, scratch: _linked(os.symlink, folder, scratch / "link"),
    "a folder with a link to the file": lambda folder, file, scratch: _beside(os.symlink, file, scratch / "links"),
    "a folder with the file itself": lambda folder, file, scratch: _beside(os.link, file, scratch / "links"),
}


def _saved(folder: Path, **options: Any) -> Path:
    load(folder).save_pretrained(folder.parent / "layout", **options)
    return folder.parent / "layout"


def _linked(link: Callable[[Path, Path], None], target: Path, path: Path) -> Path:
    link(target, path)
    return path


def _beside(link: Callable[[Path, Path], None], file: Path, folder: Path) -> Path:
    folder.mkdir()
    return _linked(link, file, folder / "model.safetensors").parent


def _snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_saving_over_a_mapped_table_is_refused_before_anything_is_written(
    layout: Callable[[Path], Path], target: Callable[[Path, Path, Path], Any], tmp_path: Path
) -> None:
    """It would cut off this program, and all others that have it mapped."""
    folder = layout(make_folded(tmp_path))
    model = load(folder, prefold_placement="disk")
    expected, table = logits(model, tokens()), Path(tables(model)[0].rows.extent.path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    to = target(folder, table, scratch)
    before = _snapshot(folder), _snapshot(Path(to))
    with pytest.raises(TableError, match=f"{table.name}: the table is mapped from there: save .* another folder"):
        model.save_pretrained(to)
    assert (_snapshot(folder), _snapshot(Path(to))) == before
    assert torch.equal(logits(model, tokens()), expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("placement", ["device", "host"])
def test_saving_over_its_own_folder_keeps_everything(
    placement: str, layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = layout(make_folded(tmp_path))
    model = load(folder, prefold_placement=placement)
    expected = logits(model, tokens())
    model.save_pretrained(folder)
    assert torch.equal(logits(model, tokens()), expected)
    for again in load_each(folder).values():
        assert torch.equal(logits(again, tokens()), expected)


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_says_the_same(models: dict[str, Any], copied: Callable[[Any], Any], placement: str) -> None:
    twin, ids = copied(models[placement]), tokens()
    given = {"decoder_input_ids": ids} if len(tables(twin)) == 2 else {}
    with torch.no_grad():
        said = [model(input_ids=ids, **given).logits for model in (models["device"], twin)]
    assert torch.equal(said[1], said[0])
    ours, theirs = (tables(model)[0].rows for model in (models[placement], twin))
    assert theirs is not ours
    assert theirs.table.data_ptr() != ours.table.data_ptr()


def test_a_mapped_table_is_not_in_a_pickle(placed: dict[str, Any]) -> None:
    size = {placement: len(pickle.dumps(model)) for placement, model in placed.items()}
    table = tables(placed["device"])[0].weight.nbytes
    assert size["device"] > size["disk"] + 0.9 * table
    assert size["host"] > size["disk"] + 0.9 * table


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_an_adapter_says_what_it_says_with_the_table_on_the_device(
    llama: Path, placed: dict[str, Any], placement: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["o_proj"])
    peft.get_peft_model(copy.deepcopy(placed["device"]), config).save_pretrained(tmp_path)
    models = [load(llama, prefold_placement=each) for each in ("device", placement)]
    for model in models:
        model.load_adapter(str(tmp_path))
    said = [logits(model.eval(), tokens()) for model in models]
    assert not torch.equal(said[0], logits(placed["device"], tokens()))
    assert torch.equal(said[1], said[0])
