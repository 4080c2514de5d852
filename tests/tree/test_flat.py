"""Decoding trees by the Triton kernels: every branch is given what it has alone, and the same bytes are read."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.tree.decoding import decode_by_kernels
from tests.tree.flattened import interpreter
from tests.tree.trees import KINDS

pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")

_STEPS = [([0, 0, 1], 1), ([2, 0, 1, 1, 0], 1), ([0, 1, 2, 3, 4], 3), ([4, 1, 1, 3], 1), ([0, 1, 2, 3], 1), ([3, 0], 1)]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as process:
        yield process


@pytest.mark.parametrize("kind", KINDS)
def test_models_decode_a_tree_exactly(process: ProcessPoolExecutor, kind: str) -> None:
    reads, expected, calls = process.submit(decode_by_kernels, kind, _STEPS, {"page_tokens": 4}).result()
    assert reads == expected
    assert set(calls) == {2, 3, 4, 5}


def test_a_pool_with_a_limit_is_one_extent(process: ProcessPoolExecutor) -> None:
    options = {"page_tokens": 2, "max_pages": 100}
    reads, expected, _ = process.submit(decode_by_kernels, "grouped heads", _STEPS, options).result()
    assert reads == expected
