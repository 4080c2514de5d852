"""Conversions that end early: killed, interrupted, out of space, or two at once."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prefold.convert import convert_checkpoint
from prefold.convert.source import open_folder
from tests.conftest import all_bytes, exhaustive, random_model, small_config

_SLOW = "\n".join(
    [
        # Stretches the writing, so that a signal has something to hit; nothing else is changed.
        "import sys, time",
        "import prefold.convert.shards as shards",
        "once = shards.as_bytes",
        "def slowly(tensor):",
        "    time.sleep(0.02)",
        "    return once(tensor)",
        "import prefold.convert.conversion as conversion",
        "conversion.as_bytes = slowly",
        "sys.argv = ['prefold', *sys.argv[1:]]",
        "from prefold.cli.main import main",
        "print('ready', file=sys.stderr, flush=True)",
        "main()",
    ]
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "source"
    random_model(small_config("llama", vocab_size=997)).save_pretrained(folder)
    return folder


def start(source: Path, out: Path, *more: str, script: str = _SLOW, **kwargs) -> subprocess.Popen:
    arguments = ["convert", str(source), str(out), "--no-verify", "--chunk-tokens", "16", *more]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def wait_for_work(running: subprocess.Popen, out: Path) -> None:
    """Return when the conversion has begun to write; what an earlier one left behind does not count."""
    table = out.with_name(f".{out.name}.prefold") / "prefold_table.safetensors"
    left = table.stat().st_mtime_ns if table.exists() else None
    while running.poll() is None and not (table.exists() and table.stat().st_mtime_ns != left):
        time.sleep(0.01)


@pytest.mark.parametrize("times", [3, exhaustive(20)])
def test_killed_at_random_moments_it_never_leaves_half_an_output(source: Path, tmp_path: Path, times: int):
    chance = random.Random(times)
    folded = convert_checkpoint(str(source), tmp_path / "folded").out
    (folded / "older").touch()
    older = all_bytes(folded)
    out = shutil.copytree(folded, tmp_path / "out")
    for _ in range(times):
        running = start(source, out, "--force")
        wait_for_work(running, out)
        time.sleep(chance.uniform(0, 1.2))
        running.kill()
        running.communicate()
        if not (out / "older").exists():  # it was done before the signal came
            assert open_folder(out).entries
            assert running.returncode in (0, -signal.SIGKILL)
            shutil.rmtree(out)
            shutil.copytree(folded, out)
        else:
            assert all_bytes(out) == older
    done = start(source, out, "--force")
    done.communicate()
    assert done.returncode == 0
    assert not (out / "older").exists()
    assert sorted(os.listdir(tmp_path)) == ["folded", "out"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted_it_cleans_up(source: Path, tmp_path: Path, name: str, code: int):
    sent = getattr(signal, name)
    # A shell's background jobs ignore SIGINT, and so would what they start.
    running = start(source, tmp_path / "out", preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL))
    wait_for_work(running, tmp_path / "out")
    running.send_signal(sent)
    _, err = running.communicate()
    assert running.returncode == code
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_two_conversions_to_one_output(source: Path, tmp_path: Path):
    first = start(source, tmp_path / "out")
    wait_for_work(first, tmp_path / "out")
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second one begins
    second = start(source, tmp_path / "out")
    _, err = second.communicate()
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 4)
    assert "another conversion is writing it" in err
    assert os.listdir(tmp_path) == ["out"]


def test_a_disk_that_fills_up_midway(source: Path, tmp_path: Path):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, the write fails and nothing else happens
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    running = start(source, tmp_path / "out", preexec_fn=limit)
    _, err = running.communicate()
    assert running.returncode == 1
    assert "cannot be written: File too large" in err
    assert os.listdir(tmp_path) == []


def test_a_conversion_in_half_the_tables_memory(tmp_path: Path):
    """The table is streamed: it is never in memory as a whole."""
    random_model(small_config("llama", vocab_size=200_000, num_hidden_layers=1), torch.float32).save_pretrained(
        tmp_path / "source"
    )
    # Not ru_maxrss: on Linux a process begins with the peak of the one that it was forked from, here all of pytest.
    peak = (
        "import pathlib, sys; sys.argv = ['prefold', *sys.argv[1:]]\n"
        "from prefold.cli.main import main\n"
        "try: main()\n"
        "finally: print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    sizes = []
    for chunk in ("512", "200000"):
        running = start(tmp_path / "source", tmp_path / f"out{chunk}", "--chunk-tokens", chunk, script=peak)
        _, err = running.communicate()
        assert running.returncode == 0
        sizes.append(int(err.strip().splitlines()[-1]) * 1024)
    table = (tmp_path / "out512" / "prefold_table.safetensors").stat().st_size
    assert sizes[0] < sizes[1] - table / 2
