"""Compare a folded checkpoint, as it lies on disk, with its source."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.convert.adapter import modules_in_tables, remaining_adapter
from prefold.convert.errors import BrokenCheckpoint, PrefoldError, UnsupportedModel, UsageError
from prefold.convert.files import ADAPTER_FOLDER, CONFIG
from prefold.convert.folded import copy_runtime, folded_config
from prefold.convert.model import load_config, load_kind, require_text
from prefold.convert.names import live_names
from prefold.convert.quantized import method_of, require_loadable
from prefold.convert.shards import DTYPES
from prefold.convert.skeleton import build_on_meta
from prefold.convert.source import Source, open_folder, open_source
from prefold.convert.study import AUTO, Study, Wanted, study_model
from prefold.verify.checks import NAMES, Outcome, Verification, VerificationFailed, not_run
from prefold.verify.job import NEW_TOKENS, Job, load_figures
from prefold.verify.metering import check_packed_reads, is_packed
from prefold.verify.outputs import check_greedy, check_logits, check_reads, check_rows, check_speed
from prefold.verify.prompts import LONGEST, token_prompts
from prefold.verify.structure import Blueprint, check_structure, find_differences, find_refusals, told

Progress = Callable[[str], None]

_FLOATS = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES.values() if dtype.is_floating_point)


class ProbeFailed(PrefoldError):
    """A checkpoint could not be loaded or run."""


class _Unfit(Exception):
    """The folded checkpoint is so broken that it is not run, or does not."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


@dataclass(frozen=True)
class _Measured:
    figures: dict[str, Any]
    outputs: dict[str, torch.Tensor]


def verify_checkpoint(
    model: str,
    folded: Path,
    *,
    revision: str | None = None,
    texts: tuple[str, ...] | None = None,
    speed: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Check ``folded`` against its source: structure, rows, logits, greedy tokens, reads, and speed if asked for.

    Both run in fresh processes, one after the other, as a user would load them; the source with ``adapter`` merged
    into it, if there is one, and the folded one with what remains of that.

    Raises:
        UsageError, UnsupportedModel, BrokenCheckpoint, HubError: the source cannot be opened.
    """
    source = open_source(model, revision)
    options: dict[str, Any] = {"texts": texts, "speed": speed, "trust_remote_code": trust_remote_code}
    return verify_against(source, folded, adapter=adapter, progress=progress, **options)


def verify_against(
    source: Source,
    folded: Path,
    *,
    texts: tuple[str, ...] | None = None,
    speed: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Do what ``verify_checkpoint`` does for a source that is open already.

    Raises:
        UsageError: ``folded`` is not a folder with a ``config.json``, or ``texts`` cannot be tokenized.
        UnsupportedModel, BrokenCheckpoint, ProbeFailed: the source does not fold, is not whole, or does not run.
    """
    progress("opening")
    try:
        opened = _open_folded(folded)
        checks = _Comparison(source, opened, texts, trust_remote_code, adapter, progress).run(speed=speed)
    except _Unfit as unfit:
        problems = unfit.problems
        checks = dict.fromkeys(NAMES if speed else NAMES[:-1], not_run("structure does not hold"))
        checks["structure"] = Outcome(False, told(problems), problems=problems)
    return Verification(source.name, str(folded), checks)


def _open_folded(folder: Path) -> Source:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    try:
        opened = open_folder(folder)
    except (BrokenCheckpoint, UnsupportedModel) as problem:
        raise _Unfit(str(problem).splitlines()) from problem
    if not isinstance(opened.config.get("prefold"), dict):
        raise _Unfit([f"{CONFIG}: has no prefold section: not a folded checkpoint"])
    if opened.config.get("dtype") not in _FLOATS:
        raise _Unfit([f"{CONFIG}: dtype is {opened.config.get('dtype')!r}, should be one of {', '.join(_FLOATS)}"])
    return opened


def require_verified(
    *,
    speed: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    progress: Progress = lambda _: None,
) -> Callable[[Source, Path], Verification]:
    """Return a check for ``convert_checkpoint`` that lets nothing pass which is not verified.

    The check raises ``VerificationFailed``.
    """

    def check(source: Source, folded: Path) -> Verification:
        verification = verify_against(
            source, folded, speed=speed, trust_remote_code=trust_remote_code, adapter=adapter, progress=progress
        )
        if not verification.passed:
            raise VerificationFailed(verification)
        return verification

    return check


class _Comparison:
    """One source and one folded checkpoint, and what is needed to compare them."""

    def __init__(
        self,
        source: Source,
        folded: Source,
        texts: tuple[str, ...] | None,
        trust_remote_code: bool,
        adapter: Path | None,
        progress: Progress,
    ) -> None:
        self.source, self.folded, self.progress, self.trust = source, folded, progress, trust_remote_code
        config = load_config(source, trust_remote_code=trust_remote_code)
        require_loadable(config)
        self.is_quantized = method_of(config) is not None
        self.kind = load_kind(source, config)
        self.dtype: str = folded.config["dtype"]
        dtype: torch.dtype = getattr(torch, self.dtype)
        self.study = _study(self.kind.model_class, config, _wanted(folded))
        live = live_names(build_on_meta(self.kind.model_class, config, dtype), source.entries)
        text_only = bool(folded.config["prefold"].get("refused_inputs"))
        require_text(self.kind, text_only=text_only)
        expected = folded_config(source, config, self.kind, self.study, dtype=dtype, text_only=text_only)
        expected.pop("torch_dtype", None)
        code = _code(config, self.kind.model_class)
        self.blueprint = Blueprint(source, expected, live, self.study, dtype, code, _remaining(adapter, self.study))
        rest = folded.folder / ADAPTER_FOLDER
        self.adapters = {source.folder: adapter, folded.folder: rest if self.blueprint.adapter else None}
        context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or LONGEST + NEW_TOKENS
        self.new_tokens = min(NEW_TOKENS, context // 2)
        longest = min(LONGEST, context - self.new_tokens)
        self.prompts = token_prompts(
            source.folder,
            min(cut.rows for cut in self.study.cuts),
            texts,
            longest=longest,
            trust_remote_code=trust_remote_code,
        )

    def run(self, *, speed: bool) -> dict[str, Outcome]:
        refusals = find_refusals(self.blueprint, self.folded, trusted=self.trust)
        if refusals:
            raise _Unfit(refusals)
        self.progress("comparing files")
        differences = find_differences(self.blueprint, self.folded)
        before, after = self._measure(differences)
        truth = self._truth(before) if any(cut.sum for cut in self.study.cuts) else None
        logits = check_logits(before.outputs, after.outputs, self.dtype, truth)
        reads = self._check_reads(before.figures, after.figures)
        checks = {
            "structure": check_structure(
                self.blueprint, differences, after.figures["loading"], before.figures["loading"]
            ),
            "rows": check_rows(before.figures["rows"], self.dtype),
            "logits": logits,
            "greedy": check_greedy(before.outputs, after.outputs, exact=logits.figures["exact"], truth=truth),
            "reads": reads,
        }
        if "tokens" not in before.outputs:
            del checks["greedy"]  # an encoder says everything at once
        if speed:
            self.progress("timing both")
            against = self._job(self.folded)
            job = self._job(self.source, speed_against=against.folder, adapter_against=against.adapter)
            measured = before.figures["reads"], after.figures["reads"]
            checks["speed"] = check_speed(self._probe(job).figures["speed"], *measured)
        return checks

    def _check_reads(self, before: dict[str, Any], after: dict[str, Any]) -> Outcome:
        reads, expected = (before["reads"], after["reads"]), (self.study.census, self.blueprint.dtype.itemsize)
        if self.is_quantized and is_packed(before["folded"], *expected):
            return check_packed_reads(*reads, before["folded"], *expected)
        return check_reads(*reads, *expected)

    def _measure(self, differences: list[str]) -> tuple[_Measured, _Measured]:
        """Run the source and then the folded checkpoint, which may not run at all: then nothing else is checked."""
        self.progress("running the source")
        made = {parameter: name for parameter, (name, _) in self.blueprint.made.items()}
        table = {"table_folder": str(self.folded.folder.absolute()), "made": made}
        before = self._probe(self._job(self.source, **table))
        self.progress("running the folded model")
        continued = before.outputs["continued"].tolist()
        try:
            return before, self._probe(self._job(self.folded, continued=continued, trust_remote_code=True))
        except ProbeFailed as problem:
            raise _Unfit([*differences, str(problem)]) from problem

    def _truth(self, before: _Measured) -> dict[str, torch.Tensor]:
        """Run the source in float64, where rounding does not count."""
        self.progress("running the source in float64")
        continued = before.outputs["continued"].tolist()
        return self._probe(self._job(self.source, dtype="float64", continued=continued, only_outputs=True)).outputs

    def _job(self, checkpoint: Source, **more: Any) -> Job:
        sums = any(cut.sum for cut in self.study.cuts)
        adapter = self.adapters[checkpoint.folder]
        common: dict[str, Any] = {
            "dtype": self.dtype,
            "adapter": str(adapter.absolute()) if adapter else None,
            "trust_remote_code": self.trust,
            "new_tokens": self.new_tokens,
            "with_text": sums,
        }
        folder, auto_class = str(checkpoint.folder.absolute()), self.kind.auto_class
        return Job(folder, auto_class=auto_class, prompts=self.prompts, **(common | more))

    def _probe(self, job: Job) -> _Measured:
        """Measure in a fresh process with an empty cache of remote code; nothing of this process is shared."""
        with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
            folder = Path(scratch)
            job.save(folder)
            environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [sys.executable, "-P", "-m", "prefold.verify.probe", str(folder)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise ProbeFailed(f"{Path(job.folder).name}: does not run: {_last_line(done.stderr)}")
            outputs = folder / "outputs.safetensors"
            return _Measured(load_figures(folder), load_file(outputs) if outputs.exists() else {})


def _study(model_class: type[PreTrainedModel], config: PreTrainedConfig, wanted: Wanted) -> Study:
    """Study a source; a fold of a cut that there is none of will differ from any other."""
    try:
        return study_model(model_class, config, wanted)
    except UsageError:
        return study_model(model_class, config, replace(wanted, cut=AUTO))


def _wanted(folded: Source) -> Wanted:
    """Return what a checkpoint was folded as; where it does not say, what most are folded as: then it will differ."""
    said = folded.config["prefold"].get("folds")
    folds = [fold for fold in said if isinstance(fold, dict)] if isinstance(said, list) else []
    names = [str(fold["cut"]) for fold in folds if fold.get("cut")]
    return Wanted(merge_residual=any(fold.get("merged") for fold in folds), cut=",".join(names) or AUTO)


def _code(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> dict[str, bytes]:
    """Return the modules that a conversion writes for a model, by name."""
    with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
        copy_runtime(Path(scratch), config, model_class)
        return {path.name: path.read_bytes() for path in Path(scratch).iterdir()}


def _remaining(adapter: Path | None, study: Study) -> dict[str, bytes]:
    """Return the files of the adapter that a conversion leaves beside the fold, by name."""
    with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
        folder = Path(scratch) / ADAPTER_FOLDER
        left = adapter is not None and remaining_adapter(adapter, modules_in_tables(study.cuts), folder)
        return {f"{ADAPTER_FOLDER}/{path.name}": path.read_bytes() for path in folder.iterdir()} if left else {}


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it was killed"
