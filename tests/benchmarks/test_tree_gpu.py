"""The script for trees on a GPU, as far as it runs without one: what is timed agrees, and its figures follow."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.tree.flattened import interpreter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.append(str(BENCHMARKS))
    yield import_module("tree_gpu")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as process:
        yield process


def _differences(folder: str, triton: bool) -> list[float]:
    """Return how far what is timed is from each branch's own attention, as part of the largest value."""
    sys.path.append(folder)
    tree_gpu = import_module("tree_gpu")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = tree_gpu.Layers(tree_gpu._QUICK, 2, device, torch.float32)
    expected = layers.by_branch()(0)
    runs = [layers.by_flex(torch.nn.attention.flex_attention.flex_attention)]
    runs += [layers.by_triton(size, 2) for size in (128, 256)] if triton else []
    return [float((run(0) - expected).abs().max() / expected.abs().max()) for run in runs]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_and_expanded_caches_agree(script: ModuleType) -> None:
    [flex] = _differences(str(BENCHMARKS), False)
    assert flex < 1e-5


def test_the_kernels_agree_too(process: ProcessPoolExecutor) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")
    found = process.submit(_differences, str(BENCHMARKS), True).result()
    assert len(found) == 3
    assert max(found) < 1e-5


def test_bytes_are_those_of_llama_3_8b(script: ModuleType) -> None:
    work = script.Work(4000, 16)
    assert work.token_bytes * 32 == 131_072  # of all layers, as the published figures count them
    assert work.physical_bytes == (4000 + 16 * 200) * 4096
    assert work.expanded_bytes == 16 * 4200 * 4096
    assert work.slots == (250 + 16 * 13) * 16
    assert max(each.slot + each.tokens for each in work.stretches()) <= work.slots
    assert import_module("tree_gpu_case").last_page(4000) == 16
    assert import_module("tree_gpu_case").last_page(200) == 8
    assert script.Work(16000, 64).layers(50 << 20) == 2
    assert script._QUICK.layers(50 << 20) == 64


def test_times_are_compared_with_that_of_reading_each_byte_once(script: ModuleType) -> None:
    work = script.Work(4000, 16)
    seconds = {"Triton, blocks of 128": 9e-6, "each branch": 90e-6}
    found = script.compared(work, 4e12, seconds, {"FlexAttention": "RuntimeError: no"})
    assert found["ideal_s"] == pytest.approx(7.3728e-6)
    assert found["to_ideal"]["Triton, blocks of 128"] == pytest.approx(9 / 7.3728)
    page = script.render([found | {"device": "GPU", "build_s": 1e-3}])
    assert "| 4,000, 16 | 29.5 | 7.4 | 9.0 (1.22x) | 90.0 (12.21x) | 1,000 |" in page
    assert "is met in 0 of 1 cases" in page
    assert "FlexAttention was not timed: RuntimeError: no." in page


def test_without_an_accelerator_the_script_says_so_and_ends_well() -> None:
    told = subprocess.run(
        [sys.executable, BENCHMARKS / "tree_gpu.py", "--quick"], capture_output=True, text=True, check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert told.stdout == "no accelerator that runs CUDA: nothing was measured\n"
