"""Draft with a small model, source and folded in turn, for two larger ones: ``python -m benchmarks.speculative``.

Trains a draft and a deeper model with the demo's own script, once, under ``build/speculative``, and writes its section
of ``docs/serving.md``; with ``--quick`` it trains for a few steps and prints. With ``--engine`` it runs vLLM instead,
where that is installed, on what was trained before.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

from benchmarks.demo.train import build
from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.shapes import align
from benchmarks.speculative_engine import serve
from benchmarks.timing import Prompt, compared, in_turn, load
from prefold.convert import convert_checkpoint
from prefold.demo import CHECKPOINT, HELD_OUT

_ROOT = Path(__file__).resolve().parent.parent
_BUILT, PAGE = _ROOT / "build" / "speculative", _ROOT / "docs" / "serving.md"
_DRAFT, _DEEPER = (2, 600), (8, 200)  # layers, and steps of training
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS, _AHEAD, _ROUNDS = 4, 32, 64, 4, 7


@dataclass
class Counted:
    """How often a draft and its target were run, in greedy generation over all prompts.

    Attributes:
        target: passes of the target.
        draft: passes of the draft, each of which proposes one token.
        tokens: that came out, ``[prompts, new tokens]``.
    """

    target: int
    draft: int
    tokens: torch.Tensor

    @property
    def accepted(self) -> float:
        """The share of proposed tokens that the target would have said, too."""
        return (self.tokens.numel() - self.target) / self.draft


def trained(layers: int, steps: int) -> Path:
    """Return a checkpoint of the demo's tokenizer, trained by the demo's script unless that was done before."""
    out = _BUILT / f"{layers}-layers-{steps}-steps"
    if not (out / "checkpoint" / "README.md").exists():  # written last
        build(out, None, steps, 0, Console(stderr=True), layers=layers)
    checkpoint = out / "checkpoint"
    vocabularies = [AutoTokenizer.from_pretrained(each).get_vocab() for each in (checkpoint, CHECKPOINT)]
    if vocabularies[0] != vocabularies[1]:
        raise SystemExit(f"{checkpoint}: its tokenizer is not the demo's: the text has changed since")
    return checkpoint


@contextmanager
def drafts(checkpoint: Path) -> Iterator[dict[str, Path]]:
    """Fold a draft; the source is aligned as the folded one is."""
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        source = copytree(checkpoint, Path(folder) / "source")
        align(source)
        yield {"source": source, "folded": convert_checkpoint(str(source), Path(folder) / "folded").out}


def prompts() -> torch.Tensor:
    """Return prompts out of text that no model was trained on, ``[prompts, tokens]``."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, model_max_length=1 << 30)
    ids = tokenizer(HELD_OUT.read_text("utf-8"), return_tensors="pt")["input_ids"][0]
    return ids.unfold(0, _PROMPT_TOKENS, len(ids) // _PROMPTS - 1)[:_PROMPTS].contiguous()


@torch.no_grad()
def write(target: PreTrainedModel, draft: PreTrainedModel | None, ids: torch.Tensor) -> torch.Tensor:
    """Continue every prompt greedily, one after the other; returns the new tokens, ``[prompts, new tokens]``."""
    length = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS}
    generate: Callable[..., Any] = target.generate
    made = [generate(each[None], do_sample=False, assistant_model=draft, **length)[0] for each in ids]
    return torch.stack(made)[:, ids.shape[1] :]


def steady(draft: PreTrainedModel) -> PreTrainedModel:
    """Let a draft propose the same number of tokens every time, whatever became of the last ones."""
    settings = draft.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = _AHEAD, "constant"
    settings.assistant_confidence_threshold = 0.0
    return draft


def counted(target: PreTrainedModel, draft: PreTrainedModel, ids: torch.Tensor) -> Counted:
    """Generate once and count passes."""
    passes = {"target": 0, "draft": 0}

    def count(name: str, *_: Any) -> None:
        passes[name] += 1

    models = {"target": target, "draft": draft}
    hooks = [model.register_forward_pre_hook(partial(count, name)) for name, model in models.items()]
    tokens = write(target, draft, ids)
    for hook in hooks:
        hook.remove()
    return Counted(**passes, tokens=tokens)


def _seconds(target: PreTrainedModel, draft: PreTrainedModel | None, ids: torch.Tensor) -> float:
    start = time.perf_counter()
    write(target, draft, ids)
    return time.perf_counter() - start


def _measured(name: str, target: PreTrainedModel, models: dict[str, PreTrainedModel], rounds: int) -> dict[str, Any]:
    ids = prompts()
    alone, seen = write(target, None, ids), {kind: counted(target, draft, ids) for kind, draft in models.items()}
    timed = {kind: partial(_seconds, target, draft, ids) for kind, draft in [("none", None), *models.items()]}
    seconds = in_turn(timed, rounds)
    return {
        "target": name,
        "same": all(torch.equal(alone, each.tokens) for each in seen.values()),
        "accepted": {kind: each.accepted for kind, each in seen.items()},
        "passes": {kind: each.target for kind, each in seen.items()},
        "speed": {kind: alone.numel() / median(each) for kind, each in seconds.items()},
        "folded": compared(seconds["source"], seconds["folded"]),
        "drafting": compared(seconds["none"], seconds["folded"]),
    }


def measure(
    draft: Path, targets: dict[str, Path], rounds: int = _ROUNDS
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the figures of every target, and how much faster the folded draft is alone."""
    with drafts(draft) as folders:
        models = {kind: steady(load(folder)) for kind, folder in folders.items()}
        steps = {kind: partial(Prompt(model, 1).decode, _NEW_TOKENS) for kind, model in models.items()}
        alone = in_turn(steps, 2 * rounds)
        figures = [_measured(name, load(target), models, rounds) for name, target in targets.items()]
    return figures, compared(alone["source"], alone["folded"])


def render(figures: list[dict[str, Any]], alone: dict[str, float]) -> str:
    """Write the section."""
    head = ["target", "draft", "accepted", "passes of the target", "tokens/s", "folded / source, same round"]
    rows = []
    for each in figures:
        for kind in ("none", "source", "folded"):
            drafted = [f"{each['accepted'][kind]:.1%}", str(each["passes"][kind])] if kind != "none" else ["", ""]
            ratio = _ratio(each["folded"]) if kind == "folded" else ""
            rows.append([each["target"], kind, *drafted, f"{each['speed'][kind]:,.0f}", ratio])
    words = {"alone": _ratio(alone), "prompts": _PROMPTS, "prompt": _PROMPT_TOKENS, "new": _NEW_TOKENS}
    words |= {"ahead": _AHEAD, "draft": _DRAFT, "deeper": _DEEPER, "rounds": _ROUNDS, "table": table(head, rows)}
    gains = ", ".join(f"{_ratio(each['drafting'])} for {each['target']}" for each in figures)
    same = "the same tokens as the target alone" if all(each["same"] for each in figures) else "OTHER TOKENS"
    return _TEXT.format(**words, gains=gains, same=same)


def _ratio(found: dict[str, float]) -> str:
    return f"{found['ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


_TEXT = """## Speculative decoding

Written by `python -m benchmarks.speculative`. A draft is small and runs several times for each pass of its target; of a
model with two layers the first is half, so this is where folding gains most. Here the draft has {draft[0]} layers and
was trained for {draft[1]} steps. The targets are the model that comes with prefold (4 layers, 1,800 steps) and a deeper
one ({deeper[0]} layers, {deeper[1]} steps). `python -m benchmarks.demo.train --layers N --steps N` trained them all,
and so they have one tokenizer. None of them is large: with a real target, drafting gains more, and what is gained by a
faster draft is a smaller part of that.

```python
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from prefold.convert import convert_checkpoint
from prefold.demo import CHECKPOINT

draft_folder = convert_checkpoint(str(CHECKPOINT), Path("draft-folded")).out  # here the demo stands for a draft
model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype="auto")
draft = AutoModelForCausalLM.from_pretrained(draft_folder, trust_remote_code=True, dtype="auto")
prompt = AutoTokenizer.from_pretrained(CHECKPOINT)("In the beginning", return_tensors="pt")
said = model.generate(**prompt, assistant_model=draft, do_sample=False, max_new_tokens=16)
```

{table}

- {prompts} prompts of {prompt} tokens out of text that none of them was trained on, {new} new tokens each, greedily,
  one after the other; the draft proposes {ahead} tokens at a time. All runs give {same}.
- **accepted**: the share of proposed tokens that the target would have said. The folded draft proposes what its source
  proposes, so acceptance and passes are the same.
- **folded / source**: the time with the source as draft / the time with the folded draft, of the same round: the median
  of {rounds} rounds, and between what half of them lie. Above 1 the folded draft is faster.
- The draft alone decodes {alone} times as fast when it is folded.
- Beside no draft at all, the folded draft is worth {gains}.
  Models as small as these spend a step on calls of operations, not on reading weights; a pass of a draft that has a
  quarter of the layers costs more than a quarter, and where the figure is below 1, drafting does not pay whichever
  draft it is.

"""


def _served(steps: int) -> str:
    with drafts(trained(_DRAFT[0], steps)) as folders:
        return serve(folders, steps, prompts().tolist(), _NEW_TOKENS, _AHEAD)


def _generated(*, quick: bool) -> str:
    steps, rounds = ((4, 4), 2) if quick else ((_DRAFT[1], _DEEPER[1]), _ROUNDS)
    draft, deeper = trained(_DRAFT[0], steps[0]), trained(_DEEPER[0], steps[1])
    targets = {"demo, 4 layers": Path(CHECKPOINT), f"{_DEEPER[0]} layers": deeper}
    return render(*measure(draft, targets, rounds))


def main() -> None:
    """Measure, and write the section or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of training, few rounds, printed")
    parser.add_argument("--engine", action="store_true", help="measure vLLM, and write its own section")
    parser.add_argument("--steps", type=int, default=_DRAFT[1], help="of training the draft that vLLM is measured with")
    asked, machine = parser.parse_args(), describe()
    transformers_logging.set_verbosity_error()  # generation warns of what it does itself for a draft
    text = _served(asked.steps) if asked.engine else _generated(quick=asked.quick)
    text += f"\n{sentence(machine)}"
    name = "speculative decoding in vLLM" if asked.engine else "speculative decoding"
    show_or_write(name, text, PAGE, show=asked.quick)


if __name__ == "__main__":
    main()
