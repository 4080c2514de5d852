"""A folder that appears whole or not at all."""

import os
import shutil
from pathlib import Path

import pytest

from prefold.convert import OutputExists, StorageError
from prefold.convert.output import output_folder, require_space


def write(out: Path, text: str, *, force: bool = False, fail: bool = False) -> None:
    with output_folder(out, force=force) as folder:
        (folder / "config.json").write_text(text)
        if fail:
            raise RuntimeError("half way")


def test_it_appears_with_everything_in_it(tmp_path: Path):
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_it_does_not_appear_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", "new", fail=True)
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path):
    write(tmp_path / "out", "old")
    with pytest.raises(OutputExists, match="exists already; --force"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_force_replaces_only_after_success(tmp_path: Path):
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", "new", force=True, fail=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_force_does_not_replace_what_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="no checkpoint"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_leftovers_of_a_dead_run_are_removed(tmp_path: Path):
    left = tmp_path / ".out.prefold"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "half.safetensors").write_text("half")
    write(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["config.json"]


def test_an_output_that_a_dead_run_had_set_aside_comes_back(tmp_path: Path):
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.prefold-old")
    with pytest.raises(OutputExists):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_two_at_once_are_refused(tmp_path: Path):
    with output_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("first")
        with pytest.raises(OutputExists, match="another conversion"):
            write(tmp_path / "out", "second")
    assert (tmp_path / "out" / "config.json").read_text() == "first"


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "out", "new")


def test_a_parent_that_was_made_is_removed_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "a" / "b" / "out", "new", fail=True)
    assert os.listdir(tmp_path) == []


def test_space_is_asked_for_before_the_first_byte(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, free // 2)
    with pytest.raises(StorageError, match="GB are needed"):
        require_space(tmp_path, free * 2)
