"""Files of the source that hold nothing folded: copied whole, cloned, or linked, and never written to."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prefold.convert import Conversion, FoldOptions, StorageError, convert_checkpoint
from prefold.convert.checkpoint.copying import copy_file, share_file
from prefold.convert.checkpoint.files import INDEX, REPORT
from prefold.verify import require_verified
from tests.conftest import Checkpoint, all_bytes, load


@pytest.fixture
def source(checkpoint: Checkpoint) -> Path:
    """Return a checkpoint of several shards, of which the first holds what folds."""
    return checkpoint("llama", max_shard_size="50KB")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on another file system."""
    shared = Path("/dev/shm")  # a file system of its own
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system")
    folder = shared / f"prefold-{tmp_path.name}-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def shards(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("model-*.safetensors"))}


def shared_names(source: Path, out: Path) -> list[str]:
    """Name the source's files that a fold shares, under whatever names."""
    there = {path.stat().st_ino for path in shards(out).values()}
    return [name for name, path in shards(source).items() if path.stat().st_ino in there]


def as_it_is(folder: Path) -> dict[str, Any]:
    """Return all that a write to a folder would change."""
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    return {"bytes": all_bytes(folder), "times": times}


def require_whole(conversion: Conversion) -> None:
    """Require that what a conversion tells of its bytes is what lies there."""
    found = sum(path.stat().st_size for path in conversion.out.rglob("*") if path.is_file())
    assert conversion.written.bytes + conversion.written.shared_bytes == found
    assert conversion.as_json()["written"]["bytes"] == conversion.written.bytes
    assert "written" not in json.loads((conversion.out / REPORT).read_text())  # the same source gives the same bytes


def test_a_file_that_holds_nothing_folded_goes_along_as_it_is(source: Path, tmp_path: Path):
    conversion = convert_checkpoint(str(source), tmp_path / "out", check=require_verified())
    before, after = shards(source), shards(conversion.out)
    assert before.keys() == after.keys()
    assert [before[name].read_bytes() == after[name].read_bytes() for name in before] == [False, True, True]
    assert shared_names(source, conversion.out) == []
    require_whole(conversion)


def test_linked_files_are_the_sources_own_and_all_others_are_not(source: Path, tmp_path: Path):
    before, options = as_it_is(source), FoldOptions(link=True)
    conversion = convert_checkpoint(str(source), tmp_path / "out", options=options, check=require_verified())
    linked = list(shards(source))[1:]
    assert shared_names(source, conversion.out) == linked
    assert conversion.written.shared_bytes == sum((source / name).stat().st_size for name in linked)
    assert [
        path.name for path in conversion.out.iterdir() if path.stat().st_nlink > 1 and path.name not in linked
    ] == []
    require_whole(conversion)
    assert "--link" not in (conversion.out / "README.md").read_text()  # it changes no byte of a fold
    assert as_it_is(source) == before


def test_nothing_writes_to_the_source_through_a_link(source: Path, tmp_path: Path):
    """Programs of ours and transformers' own make files anew; what is written into a file would show in both."""
    before, options = as_it_is(source), FoldOptions(link=True, force=True)
    out = convert_checkpoint(str(source), tmp_path / "out", options=options).out
    assert shared_names(source, out)
    model = load(out)
    model.save_pretrained(out)
    assert as_it_is(source) == before
    assert shared_names(source, convert_checkpoint(str(source), out, options=options).out)
    shutil.rmtree(out)
    assert as_it_is(source) == before


def test_a_link_that_fails_leaves_nothing(source: Path, tmp_path: Path, elsewhere: Path):
    with pytest.raises(StorageError, match=r"model-00002\S+: cannot be linked to \S+ \(.+\): leave --link out"):
        convert_checkpoint(str(source), elsewhere / "out", options=FoldOptions(link=True))
    assert list(elsewhere.iterdir()) == []
    conversion = convert_checkpoint(str(source), elsewhere / "out")
    assert (
        shards(conversion.out)["model-00002-of-00003.safetensors"].read_bytes()
        == shards(source)["model-00002-of-00003.safetensors"].read_bytes()
    )


def test_a_link_in_the_source_is_followed(source: Path, tmp_path: Path):
    """As in the hub's cache, where a link to it would be a link to a name."""
    cache = tmp_path / "cache" / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "commit").mkdir(parents=True)
    for path in source.iterdir():
        shutil.move(path, cache / "blobs" / path.name)
        (cache / "snapshots" / "commit" / path.name).symlink_to(f"../../blobs/{path.name}")
    snapshot = cache / "snapshots" / "commit"
    out = convert_checkpoint(
        str(snapshot), tmp_path / "out", options=FoldOptions(link=True), check=require_verified()
    ).out
    assert not any(path.is_symlink() for path in out.iterdir())
    assert shared_names(snapshot, out) == list(shards(out))[1:]


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"max_shard_size": 40_000}])
def test_files_that_change_are_not_linked(options: dict[str, Any], source: Path, tmp_path: Path):
    conversion = convert_checkpoint(str(source), tmp_path / "out", options=FoldOptions(link=True, **options))
    assert conversion.written.shared_bytes == 0
    assert all(path.stat().st_nlink == 1 for path in conversion.out.iterdir())
    require_whole(conversion)


def test_a_file_with_a_tensor_that_a_later_one_replaces_is_written_without_it(source: Path, tmp_path: Path):
    second, third = list(shards(source).values())[1:]
    twice = next(iter(load_file(second)))
    save_file(load_file(third) | {twice: load_file(second)[twice] + 1}, third, {"format": "pt"})
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][twice] = third.name
    (source / INDEX).write_text(json.dumps(index))
    out = convert_checkpoint(
        str(source), tmp_path / "out", options=FoldOptions(link=True), check=require_verified()
    ).out
    assert shared_names(source, out) == [third.name]
    assert sum(twice in load_file(path) for path in shards(out).values()) == 1


@pytest.mark.parametrize("size", [0, 1, (16 << 20) + 5])
def test_a_file_is_copied_whole(size: int, tmp_path: Path):
    told, source = [], tmp_path / "source"
    source.write_bytes(b"begin")
    os.truncate(source, size)
    copy_file(source, tmp_path / "copy", told.append)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert sum(told) == size


def test_a_file_is_copied_to_another_file_system(tmp_path: Path, elsewhere: Path):
    told = []
    (tmp_path / "source").write_bytes(os.urandom(1 << 20))
    copy_file(tmp_path / "source", elsewhere / "copy", told.append)
    assert sum(told) == 1 << 20
    assert (elsewhere / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_clone_is_a_file_of_its_own_or_none(tmp_path: Path):
    """Which of the two depends on the file system."""
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.write_bytes(os.urandom(1 << 16))
    is_cloned = share_file(source, clone, link=False)
    assert is_cloned == clone.exists()
    if is_cloned:
        assert clone.read_bytes() == source.read_bytes()
        assert not clone.samefile(source)


@pytest.mark.parametrize("link", [False, True])
def test_what_is_there_already_is_never_written_to(link: bool, tmp_path: Path):
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "source", tmp_path / "target")
    with pytest.raises((FileExistsError, StorageError)):
        share_file(tmp_path / "source", tmp_path / "target", link=link)
    assert (tmp_path / "target").read_text() == "target"
