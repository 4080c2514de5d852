"""Rows that are fetched from elsewhere are those of an embedding, and so is what goes wrong."""

import copy
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prefold.runtime.storage_prefold import DiskRows, find_extent
from tests.conftest import tokens
from tests.runtime.pairs import logits
from tests.runtime.placing import ELSEWHERE, tables

IDS = {
    "one": torch.tensor([[5]]),
    "repeated": torch.full((2, 9), 5),
    "first and last": torch.tensor([[0, 96]]),
    "few": tokens(1, 256),
    "one more": tokens(1, 257),
    "no tokens": torch.empty(2, 0, dtype=torch.long),
    "no batch": torch.empty(0, 7, dtype=torch.long),
    "int32": torch.arange(30, dtype=torch.int32)[None],
    "not contiguous": tokens(8, 8).T,
    "4096": tokens(1, 4096),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_look_up(placed: dict[str, Any], ids: torch.Tensor) -> None:
    expected = torch.nn.functional.embedding(ids, tables(placed["device"])[0].weight)
    for placement in ELSEWHERE:
        found = tables(placed[placement])[0].rows.fetch(ids)
        assert found.shape == (*ids.shape, 96)
        assert torch.equal(found, expected)


def test_huge_prompt(placed: dict[str, Any]) -> None:
    ids = tokens(1, 4096)
    expected = logits(placed["device"], ids)
    assert torch.equal(logits(placed["host"], ids), expected)
    assert torch.equal(logits(placed["disk"], ids), expected)


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("wrong", [-1, 97, 2**40, 2**62, -(2**63)])
def test_token_without_a_row_is_an_index_error_as_of_an_embedding(
    placed: dict[str, Any], wrong: int, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = torch.full((1, count), 5)
    ids[0, -1] = wrong
    for model in placed.values():
        with pytest.raises(IndexError, match="out of range"):
            model(input_ids=ids)
        assert model.prefold_rows[0].values is None
    _joined()
    assert capfd.readouterr().err == ""
    assert torch.equal(logits(placed["disk"], tokens()), logits(placed["device"], tokens()))


def _joined() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "_prefetch" in thread.name:
            thread.join()


_WIDTH = 4096  # values of a row of several pages, so that none shares one with the next but one


@pytest.fixture
def on_disk(tmp_path: Path) -> Any:
    """Return rows in a file of which nothing is in memory."""
    save_file({"table": torch.arange(600 * _WIDTH, dtype=torch.float32).view(600, _WIDTH)}, tmp_path / "table")
    extent = find_extent([str(tmp_path / "table")], ["table"])
    with (tmp_path / "table").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # with what was read beyond the header
    rows = DiskRows(extent)
    rows.fetch(torch.tensor([[599]]))
    if rows.misses != 1:
        pytest.skip("a file system that keeps files in memory, or does not tell")
    return rows


def test_rows_in_memory_are_hits_and_others_are_misses_each_once_a_pass(on_disk: Any) -> None:
    ids = torch.tensor([[0, 2, 2], [4, 0, 2]])
    assert torch.equal(on_disk.fetch(ids)[..., 0], ids.float() * _WIDTH)
    assert (on_disk.hits, on_disk.misses) == (0, 4)
    on_disk.fetch(ids)
    assert (on_disk.hits, on_disk.misses) == (3, 4)
    on_disk.fetch(torch.tensor([[2, 6]]))
    assert (on_disk.hits, on_disk.misses) == (4, 5)
    on_disk.fetch(torch.empty(1, 0, dtype=torch.long))
    assert (on_disk.hits, on_disk.misses) == (4, 5)


def test_rows_are_counted_in_compiled_code_too(on_disk: Any) -> None:
    fetch = torch.compile(on_disk.fetch, fullgraph=True, backend="eager")
    for ids in (torch.tensor([[0, 2]]), torch.tensor([[2, 4]])):
        assert torch.equal(fetch(ids)[..., 0], ids.float() * _WIDTH)
    assert (on_disk.hits, on_disk.misses) == (1, 4)


def test_where_the_system_does_not_tell_nothing_is_counted(
    placed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tables(copy.deepcopy(placed["disk"]))[0].rows
    monkeypatch.delattr(os, "RWF_NOWAIT")
    ids = tokens()
    assert torch.equal(rows.fetch(ids), torch.nn.functional.embedding(ids, rows.table))
    assert (rows.hits, rows.misses) == (0, 0)


@pytest.mark.parametrize("count", [256, 257])
def test_absent_rows_of_long_prompts_are_asked_for_by_a_thread_of_its_own(on_disk: Any, count: int) -> None:
    assert _asked(on_disk, count) == [count <= 256]
    _joined()
    assert _asked(on_disk, count) == [True]  # nothing to ask for


def _asked(rows: Any, count: int) -> list[bool]:
    """Return, for each time that rows are asked for, whether that is in this thread."""
    asked: list[bool] = []
    here, before = threading.current_thread(), sys.gettrace()

    def watch(frame: Any, *_: Any) -> None:
        if frame.f_code.co_name == "_prefetch":
            asked.append(threading.current_thread() is here)

    threading.settrace(watch)
    sys.settrace(watch)
    try:
        rows.fetch(torch.arange(count))
    finally:
        sys.settrace(before)
        threading.settrace(None)
    _joined()
    return asked
