"""How fast vLLM serves source and folded, in turn: ``.venv-vllm/bin/python -m benchmarks.serve [--quick]``.

Runs where vLLM runs, on a CPU as on an accelerator. Writes its section of ``docs/serving.md``; with ``--quick`` it
measures a small model and prints. A run that is stopped can be taken up: ``--rounds`` adds to what ``--keep`` has.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.engine import set_environment
from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.shapes import PYTHIA_410M, Shape, build
from benchmarks.timing import compared, random_tokens
from prefold.convert import convert_checkpoint, inspect_checkpoint

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
_AT_ONCE = (1, 8, 64)
_PROMPT, _STEPS, _LONGEST = 32, 32, 128
_SMALL = PYTHIA_410M.changed("small", hidden_size=256, num_attention_heads=4, num_hidden_layers=2, vocab_size=4096)
_SIDES = ("source", "folded")


@dataclass(frozen=True)
class _Round:
    """What one round of requests took.

    Attributes:
        seconds: for all requests, from the first one's arrival.
        first: seconds to the first token, the median of all requests.
        step: seconds between tokens, the median of all requests.
    """

    seconds: float
    first: float
    step: float


def _start(folder: Path, seed: int) -> Any:
    from vllm import LLM

    memory = {} if _is_cpu() else {"gpu_memory_utilization": 0.4}
    options = {"skip_tokenizer_init": True, "enable_prefix_caching": False, "disable_log_stats": False}
    return LLM(model=str(folder), max_model_len=_LONGEST, max_num_seqs=max(_AT_ONCE), seed=seed, **options, **memory)


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _ask(llm: Any, vocabulary: int, at_once: int) -> _Round:
    """Send some requests at once, and wait for all of them."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=_STEPS, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": tokens} for tokens in random_tokens(vocabulary, at_once, _PROMPT).tolist()]
    start = perf_counter()
    answered = llm.generate(asked, sampling, use_tqdm=False)
    seconds = perf_counter() - start
    told = [each.metrics for each in answered]
    steps = median((each.last_token_ts - each.first_token_ts) / (_STEPS - 1) for each in told)
    return _Round(seconds, median(each.first_token_latency for each in told), steps)


def _measure(shape: Shape, folder: Path, at_once: list[int], rounds: int) -> dict[str, Any]:
    """Let two engines answer in turn; the first round of each count of requests does not count."""
    engines = {side: _start(folder / side, seed=0) for side in _SIDES}
    found: dict[str, list[dict[str, Any]]] = {str(count): [] for count in at_once}
    for count in at_once:
        for number in range(rounds + 1):
            order = _SIDES if number % 2 else _SIDES[::-1]
            taken = {side: asdict(_ask(engines[side], shape.settings["vocab_size"], count)) for side in order}
            found[str(count)] += [{side: taken[side] for side in _SIDES}] if number else []
    return {"machine": describe() | _engine(), "shape": shape.name, "predicted": _predicted(folder), "rounds": found}


def _made(shape: Shape, folder: Path) -> Path:
    """Make source and folded in a folder, unless they are there."""
    if not (folder / "folded").exists():
        convert_checkpoint(str(build(shape, folder)), folder / "folded")
    return folder


def _predicted(folder: Path) -> float:
    """Return the ratio of what source and folded read in a step of one token, as the conversion counted it."""
    savings = inspect_checkpoint(str(folder / "source")).savings
    return savings.reads[0].model_before / savings.reads[0].model_after if savings else 1.0


def _engine() -> dict[str, Any]:
    import torch
    import vllm

    where = "cpu" if _is_cpu() else torch.cuda.get_device_name()
    return {"vllm": vllm.__version__, "device": where}


def _rows(figures: dict[str, Any]) -> list[list[str]]:
    rows = []
    for count, rounds in figures["rounds"].items():
        seconds, first, step = (
            {side: [each[side][what] for each in rounds] for side in _SIDES} for what in ("seconds", "first", "step")
        )
        ratio, steps = compared(*seconds.values()), compared(*step.values())
        speed = [int(count) * _STEPS / median(seconds[side]) for side in _SIDES]
        rows.append(
            [
                count,
                *(f"{each:,.1f}" for each in speed),
                f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
                *(f"{median(first[side]) * 1e3:,.0f}" for side in _SIDES),
                f"{steps['ratio']:.3f} ({steps['low']:.3f} to {steps['high']:.3f})",
                f"{figures['predicted']:.3f}" if count == "1" else "",
            ]
        )
    return rows


def _counted(figures: dict[str, Any]) -> str:
    return ", ".join(f"{len(rounds)} with {count}" for count, rounds in figures["rounds"].items())


def _render(figures: dict[str, Any]) -> str:
    head = ["requests at once", "source, tokens/s", "folded, tokens/s", "ratio (middle half)"]
    head += ["source, first token, ms", "folded, first token, ms", "steps alone, ratio (middle half)", "predicted"]
    machine = figures["machine"]
    facts = {"shape": figures["shape"], "prompt": _PROMPT, "steps": _STEPS, "rounds": _counted(figures)}
    text = _TEXT.format(**facts, vllm=machine["vllm"], device=machine["device"])
    return text + table(head, _rows(figures)) + "\n\n" + sentence(machine)


_TEXT = """## Speed

Written by `python -m benchmarks.serve`. {shape} with random weights in bf16, served by vLLM {vllm} on {device} as
`vllm serve` starts it, compiled, with prefix caching off. Source and folded each have an engine; these are asked in
turn (rounds: {rounds} at once), each request a prompt of {prompt} tokens and {steps} greedy tokens. **ratio** is the
source's time by the folded model's in the same round, above 1 where the folded one is faster; **first token** is the
median time to it, which with several requests includes waiting for the others' prompts; **predicted** is the ratio of
the bytes that both read in a step.

"""


def main() -> None:
    """Measure, and write the section, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds, shown and not written")
    parser.add_argument("--rounds", type=int, default=7, help="for each number of requests")
    parser.add_argument("--keep", type=Path, help="a file of figures: those of this run are added to it")
    parser.add_argument("--at-once", type=int, nargs="+", default=_AT_ONCE, help="numbers of requests")
    parser.add_argument("--models", type=Path, help="a folder for source and folded, used again if they are there")
    asked = parser.parse_args()
    set_environment()
    shape, rounds = (_SMALL, 2) if asked.quick else (PYTHIA_410M, asked.rounds)
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        figures = _measure(shape, _made(shape, asked.models or Path(folder)), asked.at_once, rounds)
    if asked.keep:
        figures = _added(asked.keep, figures)
    show_or_write("serve", _render(figures), _PAGE, show=asked.quick)


def _added(file: Path, figures: dict[str, Any]) -> dict[str, Any]:
    before = json.loads(file.read_text())["rounds"] if file.exists() else {}
    counts = sorted(before.keys() | figures["rounds"].keys(), key=int)
    figures["rounds"] = {count: before.get(count, []) + figures["rounds"].get(count, []) for count in counts}
    file.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    main()
