"""What only processes of their own can show of placed tables. Run as ``python -I placed.py JOB SEEN SMALL...``.

The file JOB names cases, each a function of this file and what it is given. Every case runs in a process forked off one
that has loaded the folders SMALL, so that it costs no start; the file SEEN tells what each saw, and which signal ended
it. Prefold is hidden: what runs are the modules in the checkpoints' folders.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Uninstalled:
    """Hides prefold, however it is installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuse to find it; of all else, know nothing."""
        if name.partition(".")[0] == "prefold":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load(folder: str, placement: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", prefold_placement=placement
    )
    return model.eval()


def logits(model: Any, count: int = 40) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 3 + count)[None]).logits


def rows_of(model: Any) -> Any:
    return model.get_submodule(model.config.prefold["folds"][0]["table"]["module"]).rows


def touch(model: Any) -> None:
    """Read every row."""
    rows_of(model).table.sum()


def status() -> dict[str, int]:
    """Return bytes of this process's memory, by the system's names of them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def mappings(path: str) -> list[dict[str, Any]]:
    """Return what the system says of this process's mappings of a file."""
    found: list[dict[str, Any]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            found.append({"file": rest[-1], "permissions": rest[0]})
        elif rest[-1] == "kB":
            found[-1][first.rstrip(":")] = int(rest[0]) * 1024
    return [each for each in found if each["file"] == path]


def memory(folder: str, placement: str, small: str) -> dict[str, int]:
    """Load a model; returns by how much memory grew, and at most grew, beside that of the libraries that load it."""
    logits(load(small, placement), 4)
    before = status()
    model = load(folder, placement)
    logits(model, 4)
    after = status()
    state = model.state_dict()
    return {
        "anonymous": after["RssAnon"] - before["RssAnon"],
        "peak": after["VmHWM"] - before["VmRSS"],
        "table": max(values.nbytes for values in state.values()),
        "rest": sum(values.nbytes for values in state.values()) - max(values.nbytes for values in state.values()),
    }


def shared(folder: str) -> dict[str, Any]:
    """Map one table in four processes, of which two were forked off a loaded model, and look at it from each."""
    model = load(folder, "disk")
    path = rows_of(model).extent.path
    expected = logits(model)
    touch(model)

    def other(own: bool) -> dict[str, Any]:
        theirs = load(folder, "disk") if own else model
        same = bool((logits(theirs) == expected).all())
        touch(theirs)
        return {"same": same, "mappings": mappings(path)}

    seen = fork_all([lambda own=own: other(own) for own in (True, False, True)], together=True)
    flags = [file.read_text().split("flags:")[1].split()[0] for file in _descriptors(path)]
    return {"others": seen, "flags": flags, "size": os.path.getsize(path)}


def _descriptors(path: str) -> list[Path]:
    links = Path("/proc/self/fd").iterdir()
    return [Path("/proc/self/fdinfo") / link.name for link in links if os.path.realpath(link) == path]


def killed(folder: str) -> dict[str, Any]:
    """Load in two processes at once, over and over, and kill one in the midst of it."""
    reader, writer = os.pipe()
    victim = os.fork()
    if not victim:
        while True:
            logits(load(folder, "disk"))
            os.write(writer, b".")
    os.read(reader, 1)
    expected = logits(load(folder, "disk"))
    os.kill(victim, signal.SIGKILL)
    _, ended = os.waitpid(victim, 0)
    return {"signal": os.WTERMSIG(ended), "same": bool((logits(load(folder, "disk")) == expected).all())}


def read_only(folder: str) -> dict[str, Any]:
    """Load from a file system that cannot be written to, where a process may mount one."""
    before = logits(load(folder, "device"))
    ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS: mounts of its own
    for options in (["--make-rprivate", "/"], ["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            return {"mounted": False}
    try:
        (Path(folder) / "new").touch()
    except OSError as error:
        told = error.strerror
    same = [bool((logits(load(folder, placement)) == before).all()) for placement in ("host", "disk")]
    return {"mounted": True, "told": told, "same": same}


def _cut(path: Path) -> None:
    os.truncate(path, 4096)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _replace(path: Path) -> None:
    shutil.copy(path, f"{path}.new")
    os.utime(f"{path}.new", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.rename(f"{path}.new", path)


def _overwrite(path: Path) -> None:
    kept = path.read_bytes()
    with path.open("r+b") as file:
        file.write(kept[:4096] + bytes(byte ^ 255 for byte in kept[4096:]))


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "cut short": _cut,
    "emptied": _empty,
    "deleted": os.remove,
    "replaced": _replace,
    "overwritten": _overwrite,
    "grown": _grow,
}


def changed(folder: str, name: str, count: int) -> dict[str, Any]:
    """Change a file while a model runs; returns what the next pass says, and what the model does then."""
    model = load(folder, "disk")
    expected, path = logits(model, count), Path(rows_of(model).extent.path)
    stamp, kept = _identity(path), path.read_bytes()
    CHANGES[name](path)
    told = {"changed": _identity(path) != stamp}
    for what, call in {"pass": lambda: logits(model, count), "state": model.state_dict}.items():
        told[what] = _error(call)
    told["row"] = model.prefold_rows[0].values is None
    path.write_bytes(kept)
    told["loaded again"] = bool((logits(load(folder, "disk"), count) == expected).all())
    told["as before"] = _error(lambda: logits(model, count))
    return told


def unchecked(folder: str) -> dict[str, Any]:
    """Read a mapping behind the back of all checks, after the file was cut short."""
    rows = rows_of(load(folder, "disk"))
    _cut(Path(rows.extent.path))
    return {"read": float(rows._table.float().sum())}


def _identity(path: Path) -> tuple[int, bytes] | None:
    return (path.stat().st_ino, path.read_bytes()) if path.exists() else None


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fork_all(calls: list[Callable[[], Any]], *, together: bool = False) -> list[dict[str, Any]]:
    """Run each call in a process of its own; ``together``, none ends before all are done."""
    gate, opened = os.pipe()
    running = []
    for call in calls:
        running.append(_forked(call, (gate, opened) if together else None))
        if not together:
            running[-1] = _ended(*running[-1])
    if not together:
        return running
    told = [os.read(reader, 1 << 20) for _, reader in running]
    os.close(opened)
    return [_ended(*each, said) for each, said in zip(running, told, strict=True)]


def _forked(call: Callable[[], Any], gate: tuple[int, int] | None) -> tuple[int, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    try:
        os.write(writer, json.dumps(call()).encode())
        if gate:
            os.close(gate[1])
            os.read(gate[0], 1)
    except BaseException:
        os.write(writer, json.dumps({"failed": traceback.format_exc()}).encode())
    finally:
        os._exit(0)


def _ended(process: int, reader: int, told: bytes = b"") -> dict[str, Any]:
    while piece := os.read(reader, 1 << 16):
        told += piece
    os.close(reader)
    _, ended = os.waitpid(process, 0)
    return {"ended": os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0, **json.loads(told or b"{}")}


def main(job: Path, seen: Path, small: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    for folder in small:
        for placement in ("device", "host", "disk"):
            logits(load(folder, placement))
    cases: dict[str, list[Any]] = json.loads(job.read_text())
    told = fork_all([lambda case=case: globals()[case[0]](*case[1:]) for case in cases.values()])
    told = dict(zip(cases, told, strict=True)) | {"prefold": "prefold" in sys.modules}
    seen.write_text(json.dumps(told))


if __name__ == "__main__":
    sys.meta_path.insert(0, Uninstalled())
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
