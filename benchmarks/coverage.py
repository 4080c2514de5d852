"""Fold a small model of every causal type, and write ``docs/coverage.md``: ``python -m benchmarks.coverage [--fresh]``.

Results are kept in ``docs/coverage.json`` as they come: a run that was stopped goes on where it was.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.coverage_page import page
from benchmarks.small import VOCABULARY, random_model, small_config
from prefold.convert import Conversion, PrefoldError, convert_checkpoint
from prefold.convert.section import read_cut
from prefold.convert.table import compute_rows

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Of the logits' scale, in fp32: a wrong row or position changes logits by about their whole size.
ROUNDING = 1e-5
_DOCS = Path(__file__).resolve().parent.parent / "docs"
_SECONDS = 120
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Result:
    """What came of one type.

    Attributes:
        model_type: its name.
        result: ``exact`` (rows and vocabulary), ``close``, ``wrong``, ``refused``, ``crashed`` or ``not built``.
        reason: for what is neither exact nor close.
        columns: the folded modules, named from the first block on.
        eliminated: values of the weights that the table replaces, as a share of the model's.
        differences: the largest difference of each check, as a share of its scale.
        skipped: what the source itself cannot do, and why.
    """

    model_type: str
    result: str
    reason: str = ""
    columns: list[str] = field(default_factory=list)
    eliminated: float = 0.0
    differences: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measure(model_type: str, folder: Path) -> Result:
    """Build a small model in ``folder``, fold it, and compare what source and folded model say."""
    source = folder / "source"
    try:
        random_model(small_config(model_type)).save_pretrained(source)
        model = _load(source)
        if not _prefill(model).isfinite().all():
            return Result(model_type, "not built", "its logits are not finite")
    except Exception as error:  # whatever keeps a model from running is what is told of it
        return Result(model_type, "not built", _spelled(error))
    try:
        conversion = convert_checkpoint(str(source), folder / "folded")
    except PrefoldError as refusal:
        return Result(model_type, "refused", "; ".join(str(refusal).splitlines()))
    except Exception as error:  # that this happens is what is looked for
        return Result(model_type, "crashed", _spelled(error))
    return _compared(model_type, model, conversion)


def _compared(model_type: str, source: PreTrainedModel, conversion: Conversion) -> Result:
    differences, skipped = dict[str, float](), dict[str, str]()
    reason = ""
    try:
        folded = _load(conversion.out)
        differences["rows"] = _rows_difference(source, folded)
    except Exception as error:
        return Result(model_type, "wrong", f"cannot be loaded: {_spelled(error)}", **_worth(conversion))
    for name, said in CHECKS.items():
        try:
            expected = said(source)
        except Exception as error:
            skipped[name] = _spelled(error)
            continue
        try:
            differences[name] = _difference(said(folded), expected)
        except Exception as error:
            reason = reason or f"{name}: {_spelled(error)}"
    reason = reason or _too_far(differences)
    result = "wrong" if reason else _equality(differences)
    return Result(model_type, result, reason, **_worth(conversion), differences=differences, skipped=skipped)


def _too_far(differences: dict[str, float]) -> str:
    worst = max(differences, key=lambda name: differences[name])
    return f"{worst}: differs by {differences[worst]:.1e} of its scale" if differences[worst] > ROUNDING else ""


def _equality(differences: dict[str, float]) -> str:
    return "close" if differences["rows"] or differences.get("vocabulary", 1.0) else "exact"


def _worth(conversion: Conversion) -> dict[str, Any]:
    worth = conversion.inspection.worth
    if worth is None:
        return {}
    values = worth.checkpoint_before / worth.dtype.itemsize
    names = [column.module.rpartition(".0.")[2] for column in worth.columns]
    return {"columns": names, "eliminated": worth.weights_eliminated / values}


def _load(folder: Path) -> PreTrainedModel:
    """Load a checkpoint as a user does."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    model: PreTrainedModel = loaded.eval()
    return model


def _tokens(batch: int) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (batch, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _prefill(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=_tokens(2)).logits
    return logits


@torch.no_grad()
def _padded(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of what is not padding in a left-padded batch."""
    ids, mask = _tokens(3), torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = mask[1, :1] = 0
    logits: torch.Tensor = model(input_ids=ids.masked_fill(mask == 0, 0), attention_mask=mask).logits
    return logits[mask == 1]


@torch.no_grad()
def _continued(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of greedy, cached steps; tokens that were said are made unlikely, or one would repeat."""
    made = model.generate(  # type: ignore[operator]
        _tokens(1), attention_mask=torch.ones(1, 12, dtype=torch.long), max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS, do_sample=False, num_beams=1, repetition_penalty=3.0, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(made.logits, 1)


@torch.no_grad()
def _vocabulary(model: PreTrainedModel) -> torch.Tensor:
    """Run all tokens at once, as when the table was made: no kernel has a reason to sum in another order."""
    logits: torch.Tensor = model(input_ids=torch.arange(VOCABULARY)[:, None]).logits
    return logits


CHECKS: dict[str, Callable[[PreTrainedModel], torch.Tensor]] = {
    "vocabulary": _vocabulary,
    "prefill": _prefill,
    "cached steps": _continued,
    "left-padded batch": _padded,
}


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite where one alone is not a number."""
    if got.shape != expected.shape or not torch.equal(got.isfinite(), expected.isfinite()):
        return float("inf")
    known = expected.isfinite()
    if not known.any():
        raise ValueError("the source says nothing finite")
    return float((got - expected)[known].abs().max() / expected[known].abs().max().clamp_min(1e-30))


@torch.no_grad()
def _rows_difference(source: PreTrainedModel, folded: PreTrainedModel) -> float:
    """Compare every row of the table with the live first layer."""
    cut = read_cut(folded.config.to_dict())
    live = compute_rows(source, cut, torch.arange(cut.rows)[:, None])[:, 0]
    table = folded.get_parameter(f"{cut.embedding}.weight")
    return _difference(table, live)


def _spelled(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


def _measure_and_send(model_type: str, folder: Path, answer: Connection) -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    answer.send(measure(model_type, folder))


def measure_apart(model_type: str, seconds: float = _SECONDS) -> Result:
    """Measure in a process of its own, which may hang or die without ending the run."""
    with TemporaryDirectory(prefix="prefold-coverage-") as folder:
        return _answer(model_type, Path(folder), seconds)


def _answer(model_type: str, folder: Path, seconds: float) -> Result:
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import transformers every time
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(model_type, folder, sender))
    process.start()
    sender.close()
    try:
        result: Result = receiver.recv() if receiver.poll(seconds) else _unfinished(model_type, seconds)
    except EOFError:
        result = Result(model_type, "crashed", "the process died")
    process.kill()
    process.join()
    return result


def _unfinished(model_type: str, seconds: float) -> Result:
    return Result(model_type, "crashed", f"did not end within {seconds:.0f} seconds")


def main() -> None:
    """Measure what was asked for and is not known yet, and write the page after every type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TYPES, metavar="TYPE", help="measure these, known or not")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where to write (default: docs)")
    asked = parser.parse_args()
    file = asked.docs / "coverage.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not asked.fresh else {}
    for model_type in asked.only or [name for name in TYPES if name not in known]:
        known[model_type] = asdict(measure_apart(model_type))
        known = {name: known[name] for name in TYPES if name in known}
        file.write_text(json.dumps(known, indent=1) + "\n")
    (asked.docs / "coverage.md").write_text(page(list(known.values())))


if __name__ == "__main__":
    main()
