"""Compare a folded checkpoint, as it lies on disk, with its source."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefold.convert.errors import BrokenCheckpoint, PrefoldError
from prefold.convert.model import load_class, load_config
from prefold.convert.names import live_names
from prefold.convert.reads import Census
from prefold.convert.section import read_cut
from prefold.convert.skeleton import build_on_meta
from prefold.convert.source import Source, open_folder, open_source
from prefold.convert.study import Study, study_model
from prefold.verify.checks import Outcome, Verification, not_run
from prefold.verify.job import Job, load_figures
from prefold.verify.outputs import check_greedy, check_logits, check_reads, check_rows, check_speed
from prefold.verify.prompts import token_prompts
from prefold.verify.structure import check_structure

Progress = Callable[[str], None]


class ProbeFailed(PrefoldError):
    """A checkpoint could not be loaded or run."""


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
    progress: Progress = lambda _: None,
) -> Verification:
    """Check ``folded`` against its source: structure, rows, logits, greedy tokens, reads, and speed if asked for.

    Both run in fresh processes, one after the other, as a user would load them.

    Raises:
        UsageError, UnsupportedModel, BrokenCheckpoint, HubError: the source cannot be opened.
    """
    source = open_source(model, revision)
    return verify_against(
        source, folded, texts=texts, speed=speed, trust_remote_code=trust_remote_code, progress=progress
    )


def verify_against(
    source: Source,
    folded: Path,
    *,
    texts: tuple[str, ...] | None = None,
    speed: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda _: None,
) -> Verification:
    """Do what ``verify_checkpoint`` does for a source that is open already."""
    names = ("structure", "rows", "logits", "greedy", "reads", *(["speed"] if speed else []))
    try:
        progress("opening")
        opened = open_folder(folded)
        checks = _Comparison(source, opened, texts, trust_remote_code, progress).run(speed=speed)
    except (BrokenCheckpoint, ProbeFailed) as problem:
        checks = {name: not_run("the folded checkpoint is not whole") for name in names}
        checks["structure"] = Outcome(False, "1 problem", problems=[str(problem)])
    return Verification(source.name, str(folded), checks)


class _Comparison:
    """One source and one folded checkpoint, and what is needed to compare them."""

    def __init__(
        self,
        source: Source,
        folded: Source,
        texts: tuple[str, ...] | None,
        trust_remote_code: bool,
        progress: Progress,
    ) -> None:
        self.source, self.folded, self.progress, self.trust = source, folded, progress, trust_remote_code
        self.cut = read_cut(folded.config)
        config = load_config(source, trust_remote_code=trust_remote_code)
        model_class = load_class(source, config)
        self.dtype: str = folded.config["dtype"]
        self.study: Study = study_model(model_class, config, merge_residual=self.cut.merged is not None)
        self.live = live_names(build_on_meta(model_class, config, getattr(torch, self.dtype)), source.entries)
        self.prompts = token_prompts(source.folder, self.cut.rows, texts)

    def run(self, *, speed: bool) -> dict[str, Outcome]:
        self.progress("running the source")
        before = self._probe(self._job(self.source, table_folder=str(self.folded.folder)))
        self.progress("running the folded model")
        continued = before.outputs["continued"].tolist()
        after = self._probe(self._job(self.folded, continued=continued, trust_remote_code=True))
        self.progress("comparing")
        census = Census(self.study.census.parameters, self.cut, self.study.census.routers)
        reads = before.figures["reads"], after.figures["reads"]
        logits = check_logits(before.outputs, after.outputs, self.dtype)
        checks = {
            "structure": check_structure(
                self.source, self.folded, self.live, self.cut, self.study.head, after.figures["loading"]
            ),
            "rows": check_rows(before.figures["rows"], self.dtype),
            "logits": logits,
            "greedy": check_greedy(before.outputs, after.outputs, exact=logits.figures["exact"]),
            "reads": check_reads(*reads, census, getattr(torch, self.dtype).itemsize),
        }
        if speed:
            self.progress("timing both")
            job = self._job(self.source, speed_against=str(self.folded.folder), trust_remote_code=True)
            checks["speed"] = check_speed(self._probe(job).figures["speed"], *reads)
        return checks

    def _job(self, checkpoint: Source, **more: Any) -> Job:
        trust = {"trust_remote_code": self.trust} | more
        return Job(str(checkpoint.folder.absolute()), self.dtype, self.prompts, **trust)

    def _probe(self, job: Job) -> _Measured:
        """Measure in a fresh process with an empty cache of remote code; nothing of this process is shared."""
        with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
            folder = Path(scratch)
            job.save(folder)
            environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "prefold.verify.probe", str(folder)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise ProbeFailed(f"{Path(job.folder).name}: does not run: {_last_line(done.stderr)}")
            outputs = folder / "outputs.safetensors"
            return _Measured(load_figures(folder), load_file(outputs) if outputs.exists() else {})


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it was killed"
