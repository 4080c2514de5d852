"""Convert one checkpoint and report this process's memory: ``python memory_case.py SOURCE OUT``."""

import json
import sys
from pathlib import Path

from memory_status import status

from prefold.convert import convert_checkpoint


def main(source: str, out: str, warm_up: str) -> None:
    """Convert a tiny model first: what that takes is the libraries' own."""
    convert_checkpoint(warm_up, Path(f"{out}-warm-up"))
    libraries = status("VmHWM")
    convert_checkpoint(source, Path(out))
    sys.stdout.write(json.dumps({"libraries": libraries, "peak": status("VmHWM")}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
