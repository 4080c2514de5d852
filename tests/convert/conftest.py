"""A hub on this machine, a process whose hub client talks to it, and two checkpoints to put there."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import random_model, small_config
from tests.hub_server import Files, HubServer, read_folder

Call = Callable[..., Any]

SIDE = {
    "LICENSE": b"free",
    "README.md": b"---\nlicense: mit\n---\n# Small\n",
    "chat_template.jinja": b"{{ messages }}\n",
    "params[1].json": b"{}",
}


def environment(url: str, home: Path) -> dict[str, str]:
    """Return what makes the hub's client talk to a server of ours, and nothing else."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def call(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Run a function in a process of its own, since the hub's client reads its settings when it is imported."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        with pytest.MonkeyPatch.context() as patch:
            for key in os.environ.keys() - environment("", Path()).keys():
                patch.delenv(key)
            for key, value in environment(server.url, tmp_path_factory.mktemp("hub")).items():
                patch.setenv(key, value)
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=300)


def save(folder: Path, **options: Any) -> Files:
    random_model(small_config("llama")).save_pretrained(folder, **options)
    for name, data in SIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return read_folder(folder)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "single"
    save(folder)
    return folder


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "sharded"
    assert len([name for name in save(folder, max_shard_size="50KB") if name.endswith(".safetensors")]) > 2
    return folder


@pytest.fixture
def forget_requests(server: HubServer) -> None:
    """Start a test with an empty list of requests."""
    server.requests.clear()
