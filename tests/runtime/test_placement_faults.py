"""A table's file that is not what it was: an error that names it, never another model's words, never a dead process."""

import copy
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from prefold.convert import FoldOptions
from prefold.convert.checkpoint.files import CONFIG
from prefold.runtime import TableError
from prefold.runtime.storage_prefold import DiskRows, Extent
from tests.conftest import load, tokens
from tests.runtime.pairs import generate, logits, make_folded
from tests.runtime.placed import CHANGES
from tests.runtime.placing import ELSEWHERE, TABLE_FILE, flip_byte, run_cases, tables
from tests.verify.faults import edited_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folded(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A folded checkpoint to break."""
    return Path(shutil.copytree(whole, tmp_path / "folded"))


def _header(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def _cut(bytes_left: Callable[[int, int], int]) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, bytes_left(_header(file), file.stat().st_size))


def _flip(at: Callable[[int, int], int]) -> Callable[[Path], None]:
    return lambda file: flip_byte(file, at(_header(file), file.stat().st_size))


def _in_header(old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new, 1)) and None


def _nest(file: Path) -> None:
    file.write_bytes((300_000).to_bytes(8, "little") + b"[" * 300_000)


def _as_another(file: Path) -> None:
    """Put the table of another model of the same shape there."""
    other = make_folded(file.parents[1] / "other", rms_norm_eps=0.1)
    os.replace(other / TABLE_FILE, file)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut by one byte": (_cut(lambda header, size: size - 1), "cut short"),
    "cut by half": (_cut(lambda header, size: size // 2), "cut short"),
    "cut to its header": (_cut(lambda header, size: header), "cut short"),
    "cut to the header's length": (_cut(lambda header, size: 8), "not a whole safetensors file"),
    "cut to a part of that": (_cut(lambda header, size: 3), "not a whole safetensors file"),
    "emptied": (_cut(lambda header, size: 0), "not a whole safetensors file"),
    "first byte flipped": (_flip(lambda header, size: header), "not the table that was written"),
    "one byte flipped": (_flip(lambda header, size: (header + size) // 2), "not the table that was written"),
    "last byte flipped": (_flip(lambda header, size: size - 1), "not the table that was written"),
    "header's length flipped": (_flip(lambda header, size: 7), "not a whole safetensors file"),
    "another type in its header": (_in_header(b'"F32"', b'"F3X"'), "not a whole safetensors file"),
    "another shape in its header": (_in_header(b"[97,96]", b"[96,97]"), r"no table \[96, 97\]"),
    "another place in its header": (_in_header(b"[0,", b"[8,"), "not a whole safetensors file"),
    "a place before the tensors": (_in_header(b"[0,", b"[-8,"), "not a whole safetensors file"),
    "a header that nests": (_nest, "not a whole safetensors file"),
    "another table": (_as_another, "not the table that was written"),
    "missing": (os.remove, "No such file"),
    "a folder": (lambda file: (os.remove(file), file.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize(("fault", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_file_is_named_when_it_is_loaded(
    folder: Path, placement: str, fault: Callable[[Path], Any], words: str
) -> None:
    file = folder / TABLE_FILE
    kept = file.read_bytes()
    fault(file)
    assert not file.is_file() or file.read_bytes() != kept
    with pytest.raises(OSError, match=words) as caught:
        load(folder, prefold_placement=placement)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.write_bytes(kept)
    assert load(folder, prefold_placement=placement).prefold_placement == placement


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("section", [{}, None], ids=["no hash of it", "no hashes"])
def test_config_without_a_hash_is_an_error(folder: Path, placement: str, section: Any) -> None:
    with edited_json(folder / CONFIG) as config:
        config["prefold"]["tensor_sha256"] = section
        if section is None:
            del config["prefold"]["tensor_sha256"]
    with pytest.raises(TableError, match=rf"{TABLE_FILE}: config.json tells of no table \[97, 96\] with a hash"):
        load(folder, prefold_placement=placement)


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_flipped_byte_is_found_among_other_tensors(
    whole: Path, placement: str, save: dict[str, Any], tmp_path: Path
) -> None:
    load(whole).save_pretrained(tmp_path, **save)
    extent = tables(load(tmp_path, prefold_placement="disk"))[0].rows.extent
    flip_byte(Path(extent.path), extent.start + extent.size - 1)
    with pytest.raises(TableError, match=f"{extent.path}: not the table that was written"):
        load(tmp_path, prefold_placement=placement)


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("number", [0, 1])
def test_either_of_two_tables_is_checked(placement: str, number: int, tmp_path: Path) -> None:
    folder = make_folded(tmp_path, "t5")
    extents = [table.rows.extent for table in tables(load(folder, prefold_placement="disk"))]
    assert extents[0].start != extents[1].start
    flip_byte(Path(extents[number].path), extents[number].start)
    with pytest.raises(TableError, match="not the table that was written"):
        load(folder, prefold_placement=placement)


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_flipped_byte_of_smaller_rows_is_found(placement: str, tmp_path: Path) -> None:
    folder = make_folded(tmp_path, options=FoldOptions(table_dtype="int8"))
    flip_byte(folder / TABLE_FILE)
    with pytest.raises(TableError, match="not the table that was written"):
        load(folder, prefold_placement=placement)


UNMAPPABLE = [Path("/proc/self/status"), Path("/sys/kernel/uevent_seqnum"), Path("/proc/self/fd")]


@pytest.mark.parametrize("path", UNMAPPABLE, ids=str)
def test_file_that_cannot_be_mapped_is_for_host_memory(path: Path) -> None:
    if not path.exists():
        pytest.skip("this system has no such file")
    for make in (DiskRows, lambda extent: DiskRows.load(extent, "")):
        with pytest.raises(TableError, match=rf"{path}: cannot be mapped \(.*\): place the table in host memory"):
            make(Extent(str(path), 0, (1, 2), torch.uint8))


@pytest.fixture(scope="module")
def running(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What processes saw whose table's file was changed while they ran."""
    folder = tmp_path_factory.mktemp("running")
    cases: dict[str, list[Any]] = {}
    for name in CHANGES:
        for count in (5, 40):
            copied = shutil.copytree(whole, folder / f"{name} {count}")
            cases[f"{name} {count}"] = ["changed", str(copied), name, count]
    cases["unchecked"] = ["unchecked", str(shutil.copytree(whole, folder / "unchecked"))]
    return run_cases(folder, cases, [whole])[0]


@pytest.mark.parametrize("count", [5, 40], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize("name", CHANGES)
def test_file_that_changes_while_it_is_in_use_is_an_error_of_the_next_pass(
    running: dict[str, Any], name: str, count: int
) -> None:
    told = running[f"{name} {count}"]
    assert told["changed"]
    assert told["ended"] == 0
    words = "gone while it was in use (No such file or directory)" if name == "deleted" else "changed while it was in"
    for what in ("pass", "state"):
        assert told[what].startswith("TableError: ")
        assert f"{TABLE_FILE}: {words}" in told[what]
        assert told[what].endswith("load the model again")
    assert told["row"]
    assert told["loaded again"]
    assert told["as before"].startswith("TableError: ")


def test_without_the_check_the_process_would_be_gone(running: dict[str, Any]) -> None:
    assert running["unchecked"] == {"ended": signal.SIGBUS}


USES: dict[str, Callable[[Any, Path], Any]] = {
    "deepcopy": lambda model, scratch: copy.deepcopy(model),
    "pickle": lambda model, scratch: pickle.loads(pickle.dumps(model)),
    "state": lambda model, scratch: model.state_dict(),
    "load state": lambda model, scratch: model.load_state_dict(load(scratch).state_dict()),
    "save": lambda model, scratch: model.save_pretrained(scratch / "saved"),
    "generate": lambda model, scratch: generate(model, tokens()),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_use_of_a_changed_table_goes_on(whole: Path, folder: Path, use: Callable[[Any, Path], Any]) -> None:
    """A copy, above all: it would map the other table, and know of nothing."""
    scratch = Path(shutil.copytree(whole, folder.parent / "scratch"))
    model = load(folder, prefold_placement="disk")
    use(model, scratch)
    shutil.rmtree(scratch / "saved", ignore_errors=True)
    flip_byte(folder / TABLE_FILE)
    with pytest.raises(TableError, match=f"{TABLE_FILE}: changed while it was in use"):
        use(model, scratch)
    assert not (scratch / "saved").exists()
    assert model.prefold_rows[0].values is None


def test_link_to_another_file_is_a_change(folder: Path) -> None:
    """Caches of downloaded checkpoints are folders of links."""
    file, one, other = folder / TABLE_FILE, folder.parent / "one", folder.parent / "other"
    shutil.copy(file.rename(one), other)
    file.symlink_to(one)
    model = load(folder, prefold_placement="disk")
    expected = logits(model, tokens())
    assert torch.equal(logits(load(folder), tokens()), expected)
    file.unlink()
    file.symlink_to(other)
    with pytest.raises(TableError, match=f"{file}: changed while it was in use"):
        logits(model, tokens())


class _Break(LogitsProcessor):
    """Changes a file when a number of tokens has been made."""

    def __init__(self, file: Path, after: int) -> None:
        self.file, self.left = file, after

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            flip_byte(self.file)
        return scores


def test_change_in_the_midst_of_generation_ends_it(folder: Path) -> None:
    model = load(folder, prefold_placement="disk")
    breaking = _Break(folder / TABLE_FILE, after=5)
    with pytest.raises(TableError, match="changed while it was in use"):
        generate(model, tokens(), max_new_tokens=10, logits_processor=[breaking])
    assert breaking.left == 0


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("fault", ["overwritten", "deleted"])
def test_compiled_model_is_told_of_it_too(fault: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    folder = make_folded(tmp_path, num_hidden_layers=1)
    model = load(folder, prefold_placement="disk")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(logits(compiled, tokens()), logits(model, tokens()))
    CHANGES[fault](folder / TABLE_FILE)
    with pytest.raises(TableError, match="while it was in use"):
        logits(compiled, tokens())
    assert model.prefold_rows[0].values is None


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_model_raises_its_own_module_s_error_though_another_copy_was_loaded(tmp_path: Path) -> None:
    torch._dynamo.reset()
    folder = make_folded(tmp_path, num_hidden_layers=1)
    compiled = torch.compile(load(folder, prefold_placement="disk"), fullgraph=True, backend="aot_eager")
    copy_of_it = get_class_from_dynamic_module("modeling_prefold.LlamaForCausalLM", str(folder))
    assert copy_of_it.__module__.startswith("transformers_modules.")
    assert copy_of_it.from_pretrained(folder, prefold_placement="disk").prefold_placement == "disk"
    assert logits(compiled, tokens()).isfinite().all()
    (folder / TABLE_FILE).unlink()
    with pytest.raises(TableError, match="gone while it was in use"):
        logits(compiled, tokens())


def test_table_in_host_memory_does_not_mind(folder: Path) -> None:
    model = load(folder, prefold_placement="host")
    expected = logits(model, tokens())
    (folder / TABLE_FILE).unlink()
    assert torch.equal(logits(model, tokens()), expected)
    assert torch.equal(logits(copy.deepcopy(model), tokens()), expected)


def test_one_model_s_error_is_nothing_to_another(whole: Path, folder: Path) -> None:
    broken, sound = (load(each, prefold_placement="disk") for each in (folder, whole))
    expected = logits(sound, tokens())
    flip_byte(folder / TABLE_FILE)
    with pytest.raises(TableError):
        logits(broken, tokens())
    assert torch.equal(logits(sound, tokens()), expected)
    assert json.loads((folder / CONFIG).read_text()) == json.loads((whole / CONFIG).read_text())
