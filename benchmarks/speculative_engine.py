"""Drafting in vLLM: every engine in a process of its own, ``python -m benchmarks.speculative_engine JOB``."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.page import table

_ROUNDS, _TURNS = 5, 2
_WANTED = {"accepted": "vllm:spec_decode_num_accepted_tokens", "proposed": "vllm:spec_decode_num_draft_tokens"}


def serve(drafts: dict[str, Path], target: tuple[str, Path], prompts: list[list[int]], new: int, ahead: int) -> str:
    """Generate with every draft in turn and return the section; ``drafts`` are ``source`` and ``folded``."""
    job = {"prompts": prompts, "new": new, "target": str(target[1])}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in drafts}
    for turn in range(_TURNS):
        for kind in list(runs)[:: 1 - 2 * turn]:  # there and back, so that a slow minute is nobody's alone
            runs[kind].append(_run(job | {"draft": {"model": str(drafts[kind]), "num_speculative_tokens": ahead}}))
    return render(target[0], runs, len(prompts) * new, ahead)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """Start an engine, let it write, and return what it tells."""
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        told = Path(folder) / "told.json"
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        command = [sys.executable, "-m", "benchmarks.speculative_engine", json.dumps(job | {"told": str(told)})]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        found: dict[str, Any] = json.loads(told.read_text())
        return found


def render(target: str, runs: dict[str, list[dict[str, Any]]], written: int, ahead: int) -> str:
    """Write the section; ``written`` is the number of tokens of a round."""
    rows = []
    for kind, each in runs.items():
        seconds = [one for run in each for one in run["seconds"]]
        accepted, proposed = (sum(run[name] for run in each) for name in _WANTED)
        rows.append([kind, f"{accepted / proposed:.1%}" if proposed else "", f"{written / median(seconds):,.0f}"])
    said = {json.dumps(run["tokens"]) for each in runs.values() for run in each}
    same = "All runs say the same tokens." if len(said) == 1 else f"The runs say {len(said)} different things."
    head = ["draft", "accepted", "tokens/s"]
    return _TEXT.format(target=target, ahead=ahead, rounds=_ROUNDS, turns=_TURNS, same=same) + table(head, rows) + "\n"


_TEXT = """### Drafting in vLLM

Written by `python -m benchmarks.speculative --engine`: the same draft and prompts, all prompts at once, for the target
with {target}; `speculative_config={{"model": DRAFT, "num_speculative_tokens": {ahead}}}`, compiled. Every engine runs
in {turns} processes of its own, one after another, with {rounds} rounds each; the figure is the median. {same}

"""


def main(job: dict[str, Any]) -> None:
    """Write, in the process of an engine."""
    from vllm import LLM, SamplingParams

    # Only an engine that keeps statistics counts what was accepted.
    options = {"max_model_len": 256, "disable_log_stats": False, "trust_remote_code": False}
    engine = LLM(job["target"], speculative_config=job["draft"], **options)
    asked = SamplingParams(temperature=0.0, max_tokens=job["new"], min_tokens=job["new"])
    prompts: Any = [{"prompt_token_ids": each} for each in job["prompts"]]
    seconds = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        made = engine.generate(prompts, asked, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    counts = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    told = {name: counts.get(metric, 0) for name, metric in _WANTED.items()}
    told |= {"seconds": seconds[1:], "tokens": [list(each.outputs[0].token_ids) for each in made]}
    Path(job["told"]).write_text(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
