"""Conversions that end early: killed, interrupted, out of space, or two at once."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prefold.convert import convert_checkpoint
from prefold.convert.checkpoint.source import open_folder
from tests.conftest import all_bytes, exhaustive, random_model, small_config

# Importing takes seconds: a process that is to be killed is forked from one that has imported what it needs.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["prefold.cli.main", "prefold.convert.table_writer", "transformers.models.llama"])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "source"
    random_model(small_config("llama", vocab_size=997)).save_pretrained(folder, max_shard_size="200KB")
    return folder


class Running(_FORKS.Process):
    """A command in a process of its own, which writes slowly, so that a signal has something to hit."""

    def __init__(self, source: Path, out: Path, *more: str, prepare: Callable[[], Any] = dict, pause: float = 0.02):
        super().__init__()
        self.arguments = ["convert", str(source), str(out), "--no-verify", "--chunk-tokens", "16", *more]
        self.prepare, self.pause = prepare, pause
        self.said = out.parent.parent / f"{out.parent.name}-{out.name}.stderr"
        self.start()

    def run(self) -> None:
        os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        self.prepare()
        from prefold.cli import main
        from prefold.convert import table_writer

        table_writer.as_bytes = partial(slowly, table_writer.as_bytes, self.pause)
        sys.argv = ["prefold", *self.arguments]
        main.main()

    def ended(self) -> tuple[int | None, str]:
        """Wait for the end; returns the exit code, below zero for a signal, and what was printed."""
        self.join()
        return self.exitcode, self.said.read_text()


def slowly(once: Callable[[torch.Tensor], Any], pause: float, tensor: torch.Tensor) -> Any:
    time.sleep(pause)
    return once(tensor)


def wait_for_work(running: Running, out: Path) -> None:
    """Return when the conversion has begun to write; what an earlier one left behind does not count."""
    table = out.with_name(f".{out.name}.prefold") / "prefold_table.safetensors"
    left = table.stat().st_mtime_ns if table.exists() else None
    while running.is_alive() and not (table.exists() and table.stat().st_mtime_ns != left):
        time.sleep(0.01)


@pytest.mark.parametrize("times", [3, exhaustive(20)])
def test_killed_at_random_moments_it_never_leaves_half_an_output(source: Path, tmp_path: Path, times: int):
    chance, linked = random.Random(times), all_bytes(source)
    folded = convert_checkpoint(str(source), tmp_path / "folded").out
    (folded / "older").touch()
    older = all_bytes(folded)
    out = shutil.copytree(folded, tmp_path / "out")
    for _ in range(times):
        running = Running(source, out, "--force", "--link")
        wait_for_work(running, out)
        time.sleep(chance.uniform(0, 1.2))
        running.kill()
        code, _ = running.ended()
        if not (out / "older").exists():  # it was done before the signal came
            assert open_folder(out).entries
            assert code in (0, -signal.SIGKILL)
            shutil.rmtree(out)
            shutil.copytree(folded, out)
        else:
            assert all_bytes(out) == older
    assert Running(source, out, "--force").ended()[0] == 0
    assert not (out / "older").exists()
    assert sorted(os.listdir(tmp_path)) == ["folded", "out"]
    assert all_bytes(source) == linked


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted_it_cleans_up(source: Path, tmp_path: Path, name: str, code: int):
    sent = getattr(signal, name)
    # A shell's background jobs ignore SIGINT, and so would what they start.
    handler = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    running = Running(source, tmp_path / "out", prepare=partial(signal.signal, sent, handler))
    wait_for_work(running, tmp_path / "out")
    os.kill(running.pid, sent)
    status, err = running.ended()
    assert status == code
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_two_conversions_to_one_output(source: Path, tmp_path: Path):
    first = Running(source, tmp_path / "out")
    wait_for_work(first, tmp_path / "out")
    os.kill(first.pid, signal.SIGSTOP)  # so that it is still at work when the second one begins
    code, err = Running(source, tmp_path / "out").ended()
    os.kill(first.pid, signal.SIGCONT)
    assert (first.ended()[0], code) == (0, 4)
    assert "another conversion is writing it" in err
    assert os.listdir(tmp_path) == ["out"]


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, the write fails and nothing else happens
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_fills_up_midway(source: Path, tmp_path: Path):
    code, err = Running(source, tmp_path / "out", prepare=limit_files).ended()
    assert code == 1
    assert "cannot be written: File too large" in err
    assert os.listdir(tmp_path) == []


class Measured(Running):
    """One that prints the peak of its memory last, in kB."""

    def run(self) -> None:
        try:
            super().run()
        finally:  # not ru_maxrss: on Linux it begins with the peak of the process that this one was forked from
            sys.stderr.write(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0] + "\n")


def test_a_conversion_in_half_the_tables_memory(tmp_path: Path):
    """The table is streamed: it is never in memory as a whole."""
    random_model(small_config("llama", vocab_size=200_000, num_hidden_layers=1), torch.float32).save_pretrained(
        tmp_path / "source"
    )
    sizes = []
    for chunk in ("512", "200000"):
        running = Measured(tmp_path / "source", tmp_path / f"out{chunk}", "--chunk-tokens", chunk, pause=0)
        code, err = running.ended()
        assert code == 0
        sizes.append(int(err.strip().splitlines()[-1]) * 1024)
    table = (tmp_path / "out512" / "prefold_table.safetensors").stat().st_size
    assert sizes[0] < sizes[1] - table / 2
