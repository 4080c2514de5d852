"""A folded checkpoint that an engine takes from the hub: a server on this machine that speaks its API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import HubServer, read_folder

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

ROOT = Path(__file__).parents[2]
# The hub's client reads its settings when it is imported: so in a process of its own.
SERVE = """
import json, sys
from tests.vllm.engines import answers, tokens

if __name__ == "__main__":
    said = tokens(answers(sys.argv[1], hf_overrides={"prefold_placement": sys.argv[2]}, revision="main"))
    print("SAID", json.dumps(said))
"""


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_an_engine_over_a_hub_id(llama, said, tmp_path, placement):
    with HubServer() as server:
        server.add("org/folded", read_folder(llama / "folded"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", SERVE, "org/folded", placement]
        environment = kept | settings | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert json.loads(line.removeprefix("SAID ")) == said
