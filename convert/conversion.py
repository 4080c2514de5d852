"""Source checkpoint in, folded checkpoint out."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.convert.ahead import ahead
from prefold.convert.card import write_card
from prefold.convert.cut import Cut
from prefold.convert.errors import BrokenCheckpoint, StorageError, UsageError
from prefold.convert.files import CONFIG, REPORT, TABLE, side_files
from prefold.convert.first_layer import load_first_layer
from prefold.convert.folded import (
    circumstances,
    copy_runtime,
    copy_side_files,
    folded_config,
    source_name,
    versions,
    write_config,
)
from prefold.convert.inspection import Inspection, weigh
from prefold.convert.model import load_class, load_config, resolve_dtype
from prefold.convert.names import live_names
from prefold.convert.output import output_folder, require_space
from prefold.convert.shards import as_bytes, write_file
from prefold.convert.skeleton import build_on_meta
from prefold.convert.source import Source, add_weights, open_config
from prefold.convert.study import Study, study_model
from prefold.convert.table import chunk_size, table_rows
from prefold.convert.weights import plan_weights, table_outgoing, write_index, write_shards


class Watch:
    """Told of a conversion under way; this one keeps it to itself."""

    def inspected(self, inspection: Inspection) -> None:
        """Hear what folding is worth, before the first byte is written."""

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Hear of ``done`` more bytes of a stage that has ``total``."""


class Report(Protocol):
    """What a check of a folded checkpoint returns."""

    def as_json(self) -> dict[str, Any]:
        """Return its figures."""

    def as_markdown(self) -> str:
        """Return its figures for a model card."""


Check = Callable[[Source, Path], Report]


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        merge_residual: store the FFN of a parallel block as part of the residual.
        dtype: cast the model to it; the checkpoint's own where None.
        device: computes the table.
        chunk_tokens: tokens to compute at once.
        max_shard_size: bytes of a shard; as in the source where None.
        force: replace an existing output.
        trust_remote_code: run the model code that the source brings.
    """

    merge_residual: bool = False
    dtype: torch.dtype | None = None
    device: str = "cpu"
    chunk_tokens: int | None = None
    max_shard_size: int | None = None
    force: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        out: the folded checkpoint.
        inspection: what it is worth.
        verification: what its check said; None where none was asked for.
    """

    out: Path
    inspection: Inspection
    verification: Report | None

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "out": str(self.out),
            "inspection": self.inspection.as_json(),
            "verification": self.verification.as_json() if self.verification else None,
        }


@dataclass(frozen=True)
class _Job:
    source: Source
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    study: Study
    dtype: torch.dtype
    options: Options
    watch: Watch

    @property
    def cut(self) -> Cut:
        return self.study.cut

    @property
    def chunk_tokens(self) -> int:
        return self.options.chunk_tokens or chunk_size(self.cut, self.dtype.itemsize)


def convert_checkpoint(
    model: str,
    out: Path,
    *,
    revision: str | None = None,
    options: Options = Options(),  # frozen
    check: Check | None = None,
    watch: Watch = Watch(),  # noqa: B008  # without state
) -> Conversion:
    """Fold ``model`` into ``out``, which appears only when it is whole and ``check``, if given, has passed.

    Raises:
        UnsupportedModel, UsageError, BrokenCheckpoint, HubError: the source cannot be folded or read.
        OutputExists: ``out`` exists and ``options.force`` is not set, or another run is writing it.
        StorageError: there is no space, or ``out`` cannot be written.
    """
    with output_folder(out, force=options.force) as folder:
        job = _prepare(model, revision, options, watch)
        if (job.source.folder.resolve() / CONFIG).is_relative_to(out.resolve()):
            raise UsageError(f"{out}: the source lies there, and would be replaced")
        worth = weigh(job.study, job.dtype)
        inspection = Inspection(source_name(job.source), job.source.revision, [], worth=worth)
        watch.inspected(inspection)
        try:
            _write(job, folder)
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
        report = check(job.source, folder) if check else None
        proof = f"\n{report.as_markdown()}" if report else "\nThis checkpoint was not verified.\n"
        write_card(folder, job.source, worth, inspection.verdict, _command(job), proof)
        result = {"inspection": inspection.as_json(), "verification": report.as_json() if report else None}
        (folder / REPORT).write_text(json.dumps(result | {"versions": versions()}, indent=2) + "\n")
    return Conversion(out, inspection, report)


def _prepare(model: str, revision: str | None, options: Options, watch: Watch) -> _Job:
    """Find everything out that can be found out before the first byte is written."""
    _require_device(options.device)
    opened = open_config(model, revision)
    config = load_config(opened, trust_remote_code=options.trust_remote_code)
    model_class = load_class(opened, config)
    study = study_model(model_class, config, merge_residual=options.merge_residual)
    source = add_weights(opened)
    return _Job(source, config, model_class, study, resolve_dtype(source, config, options.dtype), options, watch)


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: this machine has none that torch can use") from error


def _write(job: _Job, folder: Path) -> None:
    source, cut, watch = job.source, job.cut, job.watch
    live = live_names(build_on_meta(job.model_class, job.config, job.dtype), source.entries)
    plan = plan_weights(
        source.entries, live, cut, job.study.head, dtype=job.options.dtype, max_shard_size=job.options.max_shard_size
    )
    digest = hashlib.sha256()
    table = table_outgoing(cut, job.dtype, lambda: _table_bytes(job, digest.update))
    side = sum((source.folder / name).stat().st_size for name in side_files(source.folder))
    total, kept = table.size, plan.shard_bytes
    require_space(folder, kept + total + side + (1 << 20))
    write_file(folder / TABLE, {plan.table_name: table}, written=lambda done: watch.advanced("table", done, total))
    write_shards(folder, plan, lambda done: watch.advanced("untouched tensors", done, kept))
    write_index(folder, plan, table)
    section = folded_config(
        source,
        job.config,
        job.model_class,
        cut,
        dtype=job.dtype,
        table_sha256=digest.hexdigest(),
        computed=circumstances(job.options.device, job.chunk_tokens),
    )
    write_config(folder, section)
    copy_runtime(folder, job.config, job.model_class)
    copy_side_files(source, folder)


def _table_bytes(job: _Job, hashed: Callable[[memoryview], None]) -> Iterator[memoryview]:
    model = load_first_layer(
        job.source, job.model_class, job.config, job.study.stack, dtype=job.dtype, device=job.options.device
    )
    for rows in ahead(table_rows(model, job.cut, job.chunk_tokens)):
        if rows.dtype != job.dtype:
            raise BrokenCheckpoint(f"the first layer answers in {rows.dtype}, not in the model's {job.dtype}")
        piece = as_bytes(rows)
        hashed(piece)
        yield piece


def _command(job: _Job) -> str:
    """Spell the command that makes this checkpoint again."""
    options = job.options
    parts = ["prefold convert", source_name(job.source), "OUT"]
    parts += [f"--revision {job.source.revision}"] if job.source.revision else []
    parts += ["--merge-residual"] if options.merge_residual else []
    parts += [f"--dtype {str(options.dtype).removeprefix('torch.')}"] if options.dtype else []
    parts += [f"--device {options.device}"] if options.device != "cpu" else []
    parts += [f"--chunk-tokens {options.chunk_tokens}"] if options.chunk_tokens else []
    parts += [f"--max-shard-size {options.max_shard_size}"] if options.max_shard_size else []
    return " ".join(parts)
