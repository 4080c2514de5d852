"""Compare a folded checkpoint, as it lies on disk, with its source."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefold.common.errors import UsageError
from prefold.convert import (
    AUTO,
    BrokenCheckpoint,
    Prepared,
    Study,
    UnsupportedModel,
    folded_config,
    modules_in_tables,
    prepare_source,
    remaining_adapter,
    runtime_code,
)
from prefold.convert.checkpoint import ADAPTER_FOLDER, CONFIG, DTYPES, Source, open_folder, open_source
from prefold.convert.fold import method_of, require_loadable
from prefold.verify.checks import CHECKS, Outcome, Verification, VerificationFailed, not_run
from prefold.verify.claims import claimed_options
from prefold.verify.divergence import check_divergence, other_width
from prefold.verify.measuring import Measured, ProbeFailed, measure
from prefold.verify.outputs import Outputs, check_greedy, check_logits, check_rows, check_speed
from prefold.verify.probe.apart import first_apart
from prefold.verify.probe.job import NEW_TOKENS, Job
from prefold.verify.prompts import LONGEST, LONGEST_PASSAGE, token_passages, token_prompts
from prefold.verify.reads import check_packed_reads, check_reads, is_packed
from prefold.verify.structure import ExpectedCheckpoint, check_structure, find_differences, find_refusals, problem_count
from prefold.verify.text import check_text

Progress = Callable[[str], None]

# Types that models run in; smaller ones are for stored values alone.
_FLOATS = tuple(
    str(dtype).removeprefix("torch.") for dtype in DTYPES.values() if dtype.is_floating_point and dtype.itemsize > 1
)


class _NotRun(Exception):
    """The folded checkpoint is refused before it is loaded, or its process failed."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def verify_checkpoint(
    model: str,
    folded: Path,
    *,
    revision: str | None = None,
    texts: tuple[str, ...] | None = None,
    speed: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    isolated: bool = False,
    progress: Progress = lambda _: None,
) -> Verification:
    """Check ``folded`` against its source: structure, rows, logits, greedy tokens, reads, and speed if asked for.

    Both run in fresh processes, one after the other, as a user would load them; the source with ``adapter`` merged
    into it, if there is one, and the folded one with what remains of that. The processes are forked from one that has
    imported transformers and nothing of either; ``isolated`` starts each anew.

    Raises:
        UsageError, UnsupportedModel, BrokenCheckpoint, HubError: the source cannot be opened.
    """
    source = open_source(model, revision)
    know = partial(_prepared, source, adapter=adapter, trust_remote_code=trust_remote_code)
    return _verified(source, know, folded, texts, progress, speed=speed, isolated=isolated)


def verify_against(
    known: Prepared,
    folded: Path,
    *,
    texts: tuple[str, ...] | None = None,
    speed: bool = False,
    isolated: bool = False,
    progress: Progress = lambda _: None,
) -> Verification:
    """Verify ``folded`` as ``verify_checkpoint`` does, against a source that is prepared already.

    Raises:
        UsageError: ``folded`` is not a folder with a ``config.json``, or ``texts`` cannot be tokenized.
        UnsupportedModel, BrokenCheckpoint, ProbeFailed: the source does not fold, is not whole, or does not run.
    """
    return _verified(known.source, lambda _: known, folded, texts, progress, speed=speed, isolated=isolated)


def _verified(
    source: Source,
    know: Callable[[Source], Prepared],
    folder: Path,
    texts: tuple[str, ...] | None,
    progress: Progress,
    *,
    speed: bool,
    isolated: bool,
) -> Verification:
    """Open a folded folder and compare it; ``know`` returns its prepared source."""
    progress("opening")
    try:
        folded = _open_folded(folder)
        how = partial(measure, isolated=isolated)
        checks = _Comparison(know(folded), folded, texts, how, progress).run(speed=speed)
    except _NotRun as refused:
        checks = dict.fromkeys([*CHECKS, "speed"] if speed else CHECKS, not_run("structure does not hold"))
        checks["structure"] = Outcome(False, problem_count(refused.problems), problems=refused.problems)
    return Verification(source.name, str(folder), checks)


def _prepared(source: Source, folded: Source, adapter: Path | None, *, trust_remote_code: bool) -> Prepared:
    """Study a source for the options that ``folded`` names; an unknown cut, which differs from any, counts as auto."""
    options = claimed_options(folded.config, adapter, trust_remote_code=trust_remote_code)
    try:
        return prepare_source(source, options)
    except UsageError:
        return prepare_source(source, replace(options, cut=AUTO))


def _open_folded(folder: Path) -> Source:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    try:
        opened = open_folder(folder)
    except (BrokenCheckpoint, UnsupportedModel) as problem:
        raise _NotRun(str(problem).splitlines()) from problem
    if not isinstance(opened.config.get("prefold"), dict):
        raise _NotRun([f"{CONFIG}: has no prefold section: not a folded checkpoint"])
    if opened.config.get("dtype") not in _FLOATS:
        raise _NotRun([f"{CONFIG}: dtype is {opened.config.get('dtype')!r}, should be one of {', '.join(_FLOATS)}"])
    return opened


def require_verified(
    *, speed: bool = False, isolated: bool = False, progress: Progress = lambda _: None
) -> Callable[[Prepared, Path], Verification]:
    """Return a check for ``convert_checkpoint`` that raises ``VerificationFailed`` unless all checks pass."""

    def check(known: Prepared, folded: Path) -> Verification:
        verification = verify_against(known, folded, speed=speed, isolated=isolated, progress=progress)
        if not verification.passed:
            raise VerificationFailed(verification)
        return verification

    return check


class _Comparison:
    def __init__(
        self,
        known: Prepared,
        folded: Source,
        texts: tuple[str, ...] | None,
        measure: Callable[[Job], Measured],
        progress: Progress,
    ) -> None:
        require_loadable(known.config)
        self.known, self.folded, self.progress = known, folded, progress
        self._run = measure
        self.is_quantized = method_of(known.config) is not None
        self.dtype = str(known.dtype).removeprefix("torch.")
        source, config, study = known.source, known.config, known.study
        code = runtime_code(known.resolved.model_class) | known.side.code
        folded_json = folded_config(known, code)
        folded_json.pop("torch_dtype", None)
        adapter = known.options.adapter
        rest = _remaining(adapter, study)
        self.expected = ExpectedCheckpoint(known, folded_json, code, rest)
        self.adapters = {source.folder: adapter, folded.folder: folded.folder / ADAPTER_FOLDER if rest else None}
        context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or LONGEST + NEW_TOKENS
        self.new_tokens = min(NEW_TOKENS, context // 2)
        self.is_smaller = any(cut.encoding for cut in study.cuts)
        longest, passage = min(LONGEST, context - self.new_tokens), min(LONGEST_PASSAGE, context // 2)
        given = (source.folder, min(cut.rows for cut in study.cuts), texts)
        trust = known.options.trust_remote_code
        self.prompts = token_prompts(*given, longest=longest, trust_remote_code=trust)
        self.passages: list[list[int]] = []
        if self.is_smaller:
            self.passages = token_passages(*given, longest=passage, trust_remote_code=trust)

    def run(self, *, speed: bool) -> dict[str, Outcome]:
        refusals = find_refusals(self.expected, self.folded)
        if refusals:
            raise _NotRun(refusals)
        self.progress("comparing files")
        differences = find_differences(self.expected, self.folded)
        before, after = self._measure(differences)
        logits, truth = self._check_logits(before, after.outputs)
        if not (logits.passed or self.is_smaller):
            logits = replace(logits, problems=[*logits.problems, *self._first_apart()])
        reads = self._check_reads(before.figures, after.figures)
        checks = {
            "structure": check_structure(
                self.expected, differences, after.figures["loading"], before.figures["loading"]
            ),
            "text": check_text(before.figures["text"], after.figures["text"]),
            "rows": check_rows(before.figures["rows"], self.dtype),
            "logits": logits,
            "greedy": check_greedy(before.outputs, after.outputs, exact=logits.figures["exact"], truth=truth),
            "reads": reads,
        }
        if "tokens" not in before.outputs:
            del checks["greedy"]  # an encoder takes no steps
        if speed:
            self.progress("timing both")
            against = self._job(self.folded)
            job = self._job(self.known.source, speed_against=against.folder, adapter_against=against.adapter)
            measured = before.figures["reads"], after.figures["reads"]
            checks["speed"] = check_speed(self._run(job).figures["speed"], *measured)
        return checks

    def _check_reads(self, before: dict[str, Any], after: dict[str, Any]) -> Outcome:
        reads, expected = (before["reads"], after["reads"]), (self.known.study.census, self.known.dtype.itemsize)
        if self.is_quantized and is_packed(before["folded"], *expected):
            return check_packed_reads(*reads, before["folded"], *expected)
        return check_reads(*reads, *expected)

    def _measure(self, differences: list[str]) -> tuple[Measured, Measured]:
        """Run the source and then the folded checkpoint; if that does not run, nothing else is checked."""
        self.progress("running the source")
        made = {parameter: made.name for parameter, made in self.expected.made.items()}
        table = {"table_folder": str(self.folded.folder.absolute()), "made": made}
        text = {"tokenize": self.known.options.trust_remote_code}
        before = self._run(self._job(self.known.source, **table, **text))
        self.progress("running the folded model")
        continued = before.outputs["continued"].tolist()
        try:
            return before, self._run(self._job(self.folded, continued=continued, trust_remote_code=True, **text))
        except ProbeFailed as problem:
            raise _NotRun([*differences, str(problem)]) from problem

    def _check_logits(self, before: Measured, after: Outputs) -> tuple[Outcome, Outputs | None]:
        """Return the check, and the source's outputs in float64 where those are of use."""
        if self.is_smaller:
            kind = {"has_logits": self.known.resolved.auto_class != "AutoModel"}
            return check_divergence(before.outputs, after, self._other(before), self.dtype, **kind), None
        truth = self._source_in("float64", before) if any(cut.sum for cut in self.known.study.cuts) else None
        return check_logits(before.outputs, after, self.dtype, truth), truth

    def _first_apart(self) -> Iterator[str]:
        """Run both once more; yields the first module at which they part."""
        self.progress("looking for where they part")
        stored = modules_in_tables(self.known.study.cuts)
        jobs = self._job(self.known.source), self._job(self.folded, trust_remote_code=True)
        one, other = (self._run(replace(job, only_modules=True)).figures["modules"] for job in jobs)
        if name := first_apart(one, other, stored, self.dtype):
            yield f"the first module to return something else is {name}"

    def _other(self, before: Measured) -> Outputs | None:
        try:
            return self._source_in(other_width(self.dtype), before)
        except ProbeFailed:
            return None  # as of quantized weights, which may be multiplied in one type alone

    def _source_in(self, dtype: str, before: Measured) -> Outputs:
        """Return the source's outputs in another type."""
        self.progress(f"running the source in {dtype}")
        continued = before.outputs["continued"].tolist()
        return self._run(self._job(self.known.source, dtype=dtype, continued=continued, only_outputs=True)).outputs

    def _job(self, checkpoint: Source, **more: Any) -> Job:
        adapter = self.adapters[checkpoint.folder]
        common: dict[str, Any] = {
            "dtype": self.dtype,
            "adapter": str(adapter.absolute()) if adapter else None,
            "trust_remote_code": self.known.options.trust_remote_code,
            "new_tokens": self.new_tokens,
            "length": self.known.study.cuts[0].length,
            "with_text": self.is_smaller or any(cut.sum for cut in self.known.study.cuts),
            "passages": self.passages,
        }
        folder, auto_class = str(checkpoint.folder.absolute()), self.known.resolved.auto_class
        return Job(folder, auto_class=auto_class, prompts=self.prompts, **(common | more))


def _remaining(adapter: Path | None, study: Study) -> dict[str, bytes]:
    """Return the adapter's files that a conversion leaves beside the fold, by name."""
    with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
        folder = Path(scratch) / ADAPTER_FOLDER
        left = adapter is not None and remaining_adapter(adapter, modules_in_tables(study.cuts), folder)
        return {f"{ADAPTER_FOLDER}/{path.name}": path.read_bytes() for path in folder.iterdir()} if left else {}
