"""Fold a small model of every type, and write ``docs/coverage.md``: ``python -m benchmarks.coverage [--fresh]``.

Results are kept in ``docs/coverage.json`` as they come: a run that was stopped goes on
where it was.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from benchmarks.accuracy import difference
from benchmarks.apart import answers
from benchmarks.checks import depends_on_tokens, first_logits
from benchmarks.comparison import ROUNDING, Comparison, spelled
from benchmarks.coverage_page import page
from benchmarks.small import random_model, small_config
from benchmarks.tasks import KEYS, Key, auto_class
from prefold.convert import Conversion, FoldOptions, PrefoldError, convert_checkpoint
from prefold.convert.checkpoint.files import CONFIG
from prefold.convert.fold.layout import read_cuts
from prefold.convert.fold.table import compute_rows

_ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 120
_WORKERS = 2


@dataclass(frozen=True)
class Result:
    """What came of one type.

    Attributes:
        task: causal, masked or seq2seq.
        model_type: its name.
        result: ``exact`` (rows and vocabulary), ``as accurate`` (against fp64), ``close``, ``wrong``, ``refused``,
            ``crashed`` or ``not built``.
        reason: for what did not fold, or not well.
        columns: the folded modules, named from the first block on.
        refused_inputs: what the folded model does not take, images or sounds; empty where --text-only was not needed.
        eliminated: values of the weights that the table replaces, as a share of the model's.
        differences: the largest difference of each check, as a share of its scale.
        source_error: of each check, the source's largest error against fp64 and its NMSE, where that was needed.
        folded_error: the same of the folded model.
        error_ratio: the folded model's NMSE by the source's, over all checks that have errors.
        skipped: what the source itself cannot do, and why.
    """

    task: str
    model_type: str
    result: str
    reason: str = ""
    columns: list[str] = field(default_factory=list)
    refused_inputs: list[str] = field(default_factory=list)
    eliminated: float = 0.0
    differences: dict[str, float] = field(default_factory=dict)
    source_error: dict[str, tuple[float, float]] = field(default_factory=dict)
    folded_error: dict[str, tuple[float, float]] = field(default_factory=dict)
    error_ratio: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def measure(key: Key, folder: Path) -> Result:
    """Build a small model in ``folder``, fold it, and compare what source and folded model say."""
    source = folder / "source"
    try:
        model = _built(key, source)
    except Exception as error:  # whatever keeps a model from running is what is told of it
        return Result(key.task, key.model_type, "not built", spelled(error))
    try:
        conversion = convert_checkpoint(str(source), folder / "folded", options=FoldOptions(text_only=True))
    except PrefoldError as refusal:
        return Result(key.task, key.model_type, "refused", "; ".join(str(refusal).splitlines()))
    except Exception as error:  # that this happens is what is looked for
        return Result(key.task, key.model_type, "crashed", spelled(error))
    return _compared(key, model, conversion)


def _built(key: Key, folder: Path) -> PreTrainedModel:
    """Build a model, save it, and load it again.

    Raises:
        ValueError: what was loaded does not run as it should.
    """
    built = random_model(small_config(key.model_type, key.task), auto_class(key))
    built.save_pretrained(folder)
    model = _load(folder, auto_class(key))
    logits = first_logits(model, key.task)
    if not logits.isfinite().all():
        raise ValueError("its logits are not finite")
    if difference(logits, first_logits(built, key.task)) > ROUNDING:
        raise ValueError("it says something else once it was saved")
    if not depends_on_tokens(model, key.task):
        raise ValueError("its logits do not depend on the tokens")
    return model


def _load(folder: Path, by: Any) -> PreTrainedModel:
    """Load a checkpoint as a user does."""
    loaded: Any = by.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    model: PreTrainedModel = loaded.eval()
    return model


def _compared(key: Key, source: PreTrainedModel, conversion: Conversion) -> Result:
    savings = _worth(conversion)
    try:
        folded = _load(conversion.out, auto_class(key))
        rows = _rows_difference(source, folded)
    except Exception as error:
        return Result(key.task, key.model_type, "wrong", f"cannot be loaded: {spelled(error)}", **savings)
    found = Comparison(source, folded, key.task, {} if rows is None else {"rows": rows})
    found.run()
    if found.reason:
        return Result(
            key.task,
            key.model_type,
            "wrong",
            found.reason,
            **savings,
            differences=found.differences,
            skipped=found.skipped,
        )
    result, reason = found.judged()
    return Result(key.task, key.model_type, result, reason, **savings, **found.figures())


def _worth(conversion: Conversion) -> dict[str, Any]:
    savings = conversion.inspection.savings
    if savings is None:
        return {}
    values = savings.checkpoint_before / savings.dtype.itemsize
    sides = {side.side: [column.module.rpartition(".0.")[2] for column in side.columns] for side in savings.sides}
    names = [f"{side.rpartition('.')[2]}: {name}" if len(sides) > 1 else name for side in sides for name in sides[side]]
    refused = json.loads((conversion.out / CONFIG).read_text())["prefold"]["refused_inputs"]
    return {"columns": names, "refused_inputs": refused, "eliminated": savings.weights_eliminated / values}


@torch.no_grad()
def _rows_difference(source: PreTrainedModel, folded: PreTrainedModel) -> float | None:
    """Compare every row of the tables with the live first layers; None where a table sees a sum of look-ups."""
    cuts = read_cuts(folded.config.to_dict())
    if any(cut.sum for cut in cuts):
        return None
    apart = []
    for cut in cuts:
        live = compute_rows(source, cut, cut.texts(torch.arange(cut.rows)))[:, 0]
        apart.append(difference(folded.get_parameter(f"{cut.embedding}.weight"), live))
    return max(apart)


def _measure_alone(job: tuple[Key, Path]) -> Result:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    key, folder = job
    return measure(key, folder)


def measure_apart(keys: Iterable[Key], seconds: float = _SECONDS, workers: int = _WORKERS) -> Iterator[Result]:
    """Measure each type in a process of its own, which may hang or die without ending the run."""
    with TemporaryDirectory(prefix="prefold-coverage-") as folder:
        jobs = [(key, Path(folder) / key.task / key.model_type) for key in keys]
        for (key, place), answer in answers(_measure_alone, jobs, seconds=seconds, workers=workers):
            shutil.rmtree(place, ignore_errors=True)
            yield answer if isinstance(answer, Result) else Result(key.task, key.model_type, "crashed", answer)


def main() -> None:
    """Measure what was asked for and is not known yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [str(key) for key in KEYS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="TASK/TYPE", help="measure these, known or not")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--out", type=Path, help="where to write both files (default: docs and cli)")
    asked_for = parser.parse_args()
    file = (asked_for.out or _ROOT / "docs") / "coverage.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not asked_for.fresh else {}
    wanted = asked_for.only or [name for name in names if name not in known]
    for result in measure_apart(map(Key.read, wanted)):
        known[f"{result.task}/{result.model_type}"] = asdict(result)
        file.write_text(json.dumps({name: known[name] for name in names if name in known}, indent=1) + "\n")
    ((asked_for.out or _ROOT / "docs") / "coverage.md").write_text(
        page([known[name] for name in names if name in known])
    )


if __name__ == "__main__":
    main()
