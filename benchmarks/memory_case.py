"""Convert one checkpoint and report this process's memory: ``python memory_case.py SOURCE OUT``."""

import json
import sys
from pathlib import Path

from prefold.convert import convert_checkpoint


def _status(name: str) -> int:
    """Return a line of the process's status, in bytes.

    ``getrusage`` would do, but its peak begins with that of the process which started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(name)


def main(source: str, out: str, warm_up: str) -> None:
    """Convert a tiny model first: what that takes is the libraries' own."""
    convert_checkpoint(warm_up, Path(f"{out}-warm-up"))
    libraries = _status("VmHWM")
    convert_checkpoint(source, Path(out))
    sys.stdout.write(json.dumps({"libraries": libraries, "peak": _status("VmHWM")}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
