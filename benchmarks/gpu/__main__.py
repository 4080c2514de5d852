"""Run the parts, most valuable first, and write ``gpu.json`` and ``gpu.md`` after each of them."""

import argparse
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.timed import Found

# Each part's title, and its share of the time; what one leaves over goes to those behind it.
PARTS = {
    "exact": ("Right", 30),
    "fold": ("Fold", 30),
    "tree": ("Tree", 25),
    "placement": ("Placement", 10),
    "plan": ("Plan", 10),
}
_ENDS = 5.0  # seconds that are kept for writing


def measure_part(name: str, file: Path, device: str, *, quick: bool) -> None:
    """Measure a part, and write each of its figures as soon as it is there."""
    part = import_module(f"benchmarks.gpu.{name}")
    with file.open("w") as lines:
        for figure in part.measure(device, quick=quick):
            lines.write(json.dumps(figure) + "\n")
            lines.flush()


def run_part(name: str, out: Path, seconds: float, options: list[str]) -> dict[str, Any]:
    """Run a part in a process of its own: what it breaks, as a device's context, is not the next one's."""
    file, said = out / f"{name}.jsonl", out / f"{name}.log"
    file.unlink(missing_ok=True)
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--part", name, *options]
    with said.open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False).returncode
            state = "done" if code == 0 else f"failed with {code}: {_last_line(said)}"
        except subprocess.TimeoutExpired:
            state = f"ended after its {seconds:.0f} s"
    figures = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {"state": state, "seconds": time.monotonic() - begun, "figures": figures}


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")


def render(machine: str, results: dict[str, Any]) -> str:
    """Write a page of the parts that were run."""
    found: Found = {name: each["figures"] for name, each in results.items()}
    parts = [f"# On a GPU\n\nWritten by `python -m benchmarks.gpu` on {machine}."]
    for name, each in results.items():
        body = import_module(f"benchmarks.gpu.{name}").render(found) if each["figures"] else "No figures."
        ended = "" if each["state"] == "done" else f"\n\nThis part {each['state']}."
        parts.append(f"## {PARTS[name][0]}\n\n{body}{ended}")
    return "\n\n".join(parts) + "\n"


def run(out: Path, minutes: float, device: str, *, quick: bool) -> dict[str, Any]:
    """Run all parts within the time, and write after each."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes - _ENDS
    name = "a CPU" if device == "cpu" else torch.cuda.get_device_name()
    machine = f"{name}, torch {torch.__version__}"
    options, results = ["--device", device, *(["--quick"] if quick else [])], dict[str, Any]()
    for part, (_, share) in PARTS.items():
        left = sum(each for name, (_, each) in PARTS.items() if name not in results)
        results[part] = run_part(part, out, max(1.0, (end - time.monotonic()) * share / left), options)
        (out / "gpu.json").write_text(json.dumps({"machine": machine, "parts": results}, indent=2) + "\n")
        (out / "gpu.md").write_text(render(machine, results))
        sys.stdout.write(f"{part}: {results[part]['state']}, {results[part]['seconds']:.0f} s\n")
        sys.stdout.flush()
    return results


def main() -> None:
    """Run what was asked for; where there is no GPU, print so."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for figures and page (default: gpu)")
    parser.add_argument("--minutes", type=float, default=8, help="that all parts may take together (default: 8)")
    parser.add_argument("--device", default="cuda", help="cpu: to test the script, with --quick")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        measure_part(asked.part, asked.out / f"{asked.part}.jsonl", asked.device, quick=asked.quick)
    elif asked.device != "cpu" and not torch.cuda.is_available():
        sys.stdout.write("no GPU that runs CUDA: nothing was measured\n")
    else:
        run(asked.out, asked.minutes, asked.device, quick=asked.quick)


if __name__ == "__main__":
    main()
