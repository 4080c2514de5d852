"""Two stages of a pipeline: the first one alone has a table, and both together say what the source says."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=["llama", "cohere"])
def seen(request, checkpoint):
    """What each stage saw, of source and folded."""
    folder = checkpoint(request.param)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.vllm.stages", folder], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_first_stage_alone_has_a_table(seen):
    tables = [{name for name in stage["folded"]["weights"] if ".prefold." in name} for stage in seen]
    assert [len(names) for names in tables] == [1, 0]
    assert not any("layers.0." in name and "qkv" in name for name in seen[0]["folded"]["weights"])
    assert seen[1]["folded"]["weights"] == seen[1]["source"]["weights"]


def test_stages_hand_on_what_the_source_does(seen):
    """To the bit for Llama; for Cohere 2.1e-6 apart where the largest value is 4.8."""
    for stage in seen:
        source, folded = stage["source"]["given"], stage["folded"]["given"]
        assert source.keys() == folded.keys()
        for name, values in source.items():
            assert values.abs().max() > 0.1
            torch.testing.assert_close(folded[name], values, rtol=0, atol=1e-5)
