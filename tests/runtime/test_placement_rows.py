"""Rows that are fetched from elsewhere are those of an embedding, and so is what goes wrong."""

import sys
import threading
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize("count", [256, 257])
def test_rows_of_long_prompts_are_asked_for_by_a_thread_of_its_own(placed: dict[str, Any], count: int) -> None:
    asked: list[bool] = []
    here, before = threading.current_thread(), sys.gettrace()

    def watch(frame: Any, *_: Any) -> None:
        if frame.f_code.co_name == "_prefetch":
            asked.append(threading.current_thread() is here)

    threading.settrace(watch)
    sys.settrace(watch)
    try:
        tables(placed["disk"])[0].rows.fetch(torch.arange(count) % 97)
    finally:
        sys.settrace(before)
        threading.settrace(None)
    _joined()
    assert asked == [count <= 256]
