"""A rank loads its part of the table out of the mapped file, and never holds the whole of it."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

ROWS, WIDTH, PART = 1 << 16, 1024, 256

# Loads a quarter of every row in a process that may take that, and a fifth of the whole besides. As vLLM reads a file.
LOAD = f"""
import re, resource, sys
from pathlib import Path
import torch
from safetensors import safe_open
from prefold.runtime.vllm.table import Table

with safe_open(sys.argv[1], framework="pt") as file:
    whole = file.get_tensor("embed")
entry = {{"tensor": "embed", "rows": {ROWS}, "row_width": {WIDTH}, "encoding": None}}
taken = torch.arange(0, {WIDTH}, {WIDTH // PART})
used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + whole.nbytes // 4 + whole.nbytes // 5,) * 2)
part = Table(entry, taken, "device", "")
LINE
print(all(torch.equal(part.weight[row], whole[row, taken]) for row in range({ROWS})))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("wide") / "model.safetensors"
    save_file({"embed": torch.randn(ROWS, WIDTH)}, made)
    return made


def load(file, line):
    return subprocess.run([sys.executable, "-c", LOAD.replace("LINE", line), file], capture_output=True, text=True)


def test_a_part_and_a_chunk_are_enough(file):
    done = load(file, "part.fill(whole)")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2000:]


def test_the_whole_would_not_fit(file):
    """The control: what holds the whole table beside the part is noticed."""
    done = load(file, "part.fill(whole.clone())")
    assert done.returncode
    assert "alloc" in done.stderr
