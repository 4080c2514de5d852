"""The command line, run in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from prefold.cli.main import main
from tests.conftest import random_model, small_config
from tests.verify.tokenizer import save_tokenizer


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def prefold(monkeypatch, capsys) -> Callable[..., Ran]:
    """Return a function that runs the command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["prefold", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
            raise SystemExit(0)
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model with a tokenizer, for commands that run it."""
    folder = tmp_path_factory.mktemp("cli") / "llama"
    random_model(small_config("llama")).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
