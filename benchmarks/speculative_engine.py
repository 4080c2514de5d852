"""Drafting in vLLM: the part of ``benchmarks.speculative`` that runs where vLLM is installed."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine import set_environment
from benchmarks.page import table
from benchmarks.timing import compared
from prefold.demo import CHECKPOINT

_ROUNDS = 15
_WANTED = {"accepted": "vllm:spec_decode_num_accepted_tokens", "proposed": "vllm:spec_decode_num_draft_tokens"}


def serve(drafts: dict[str, Path], steps: int, prompts: list[list[int]], new: int, ahead: int) -> str:
    """Let an engine with each draft write in turn, and return the section.

    ``drafts`` are ``source`` and ``folded``, trained for so many ``steps``; the target is the model of the demo.
    """
    set_environment()
    engines = {kind: _start(folder, ahead) for kind, folder in drafts.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in drafts}
    said: dict[str, list[list[int]]] = {}
    for number in range(_ROUNDS + 1):
        for kind in list(engines)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            said[kind] = _write(engines[kind], prompts, new)
            seconds[kind].append(time.perf_counter() - start)
    taken = {kind: each[1:] for kind, each in seconds.items()}  # the first round warms up
    counts = {kind: _counted(each) for kind, each in engines.items()}
    facts = {"steps": steps, "ahead": ahead, "rounds": _ROUNDS, "same": _same(said)}
    return _TEXT.format(**facts) + _table(taken, counts, len(prompts) * new)


def _start(draft: Path, ahead: int) -> Any:
    from vllm import LLM

    # Only an engine that keeps statistics counts what was accepted.
    drafting = {"model": str(draft), "num_speculative_tokens": ahead}
    return LLM(str(CHECKPOINT), max_model_len=256, disable_log_stats=False, speculative_config=drafting)


def _write(engine: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0.0, max_tokens=new, min_tokens=new)
    made = engine.generate([{"prompt_token_ids": each} for each in prompts], asked, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in made]


def _counted(engine: Any) -> dict[str, float]:
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return {name: values[metric] for name, metric in _WANTED.items()}


def _same(said: dict[str, list[list[int]]]) -> str:
    return "Both say the same tokens." if said["source"] == said["folded"] else "They say DIFFERENT tokens."


def _table(seconds: dict[str, list[float]], counts: dict[str, dict[str, float]], written: int) -> str:
    ratio = compared(seconds["source"], seconds["folded"])
    told = {"source": "", "folded": f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"}
    rows = []
    for kind, each in seconds.items():
        share = counts[kind]["accepted"] / counts[kind]["proposed"]
        rows.append([kind, f"{share:.1%}", f"{written / median(each):,.0f}", told[kind]])
    return table(["draft", "accepted", "tokens/s", "folded / source, same round"], rows) + "\n"


_TEXT = """### Drafting in vLLM

Written by `python -m benchmarks.speculative --engine --steps {steps}`: a draft of the same shape, trained for {steps}
steps alone, so that less is accepted, and the same prompts, all at once, for the model that comes with prefold;
`speculative_config={{"model": DRAFT, "num_speculative_tokens": {ahead}}}`, compiled. An engine with each draft writes
in turn, for {rounds} rounds. {same}

"""
