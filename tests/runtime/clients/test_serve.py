"""transformers' own server answers for a fold as for its source."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from transformers.cli.serving.model_manager import ModelManager

from prefold.demo import CHECKPOINT
from tests.runtime.clients.checkpoints import folded
from tests.runtime.clients.ways import RUNTIME, Way

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
ASKED: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "In the beginning", "max_tokens": 12},
    "chat/completions": {"messages": [{"role": "user", "content": "The king said"}], "max_tokens": 12},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a source and its fold, with a chat template."""
    source = tmp_path_factory.mktemp("served") / "source"
    shutil.copytree(CHECKPOINT, source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    return [source, folded(source)]


@contextmanager
def _server(*arguments: str) -> Iterator[str]:
    """Run the server as its users do, in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefold.runtime", "serve", *arguments, "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, env=os.environ | OFFLINE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_for(process, f"http://localhost:{port}/health")
        yield f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.communicate()


def _wait_for(process: subprocess.Popen[bytes], address: str) -> None:
    while True:
        try:
            urlopen(address).close()
            return
        except URLError:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.2)


def _answer(address: str, asked: str, model: Path) -> Any:
    body = ASKED[asked] | {"model": str(model), "temperature": 0}
    request = Request(f"{address}/{asked}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        said = json.load(response)
    return said["choices"], said["usage"]


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--continuous-batching"], marks=pytest.mark.exhaustive)], ids=str
)
def test_answers_over_http_are_the_sources(checkpoints: list[Path], options: list[str]) -> None:
    with _server(*options) as address:
        for asked in ASKED:
            expected, said = (_answer(address, asked, model) for model in checkpoints)
            assert said == expected
            assert expected[1]["completion_tokens"] == 12


@pytest.mark.exhaustive
def test_server_of_one_fold_loads_it_beforehand(checkpoints: list[Path]) -> None:
    with _server(str(checkpoints[1])) as address:
        assert _answer(address, "completions", checkpoints[1])[1]["completion_tokens"] == 12


def test_server_takes_the_class_that_the_config_names(checkpoints: list[Path]) -> None:
    manager = ModelManager(device="cpu")
    RUNTIME.require(manager._load_model(f"{checkpoints[1]}@main"))


@pytest.mark.parametrize("trust", [False, True])
def test_server_that_does_not_know_of_folds_refuses_one(checkpoints: list[Path], trust: bool, stock: Way) -> None:
    """It takes transformers' own class, trust or not, and that has no place for a table."""
    source, fold = (f"{checkpoint}@main" for checkpoint in checkpoints)
    manager = ModelManager(device="cpu", trust_remote_code=trust)
    stock.require(manager._load_model(source))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        manager._load_model(fold)
