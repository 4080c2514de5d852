"""Source checkpoint in, folded checkpoint out."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from prefold.common.errors import UsageError
from prefold.convert.adapter import check_adapter, modules_in_tables, remaining_adapter
from prefold.convert.checkpoint.files import ADAPTER_FOLDER, CONFIG, REPORT, TABLE, all_files
from prefold.convert.checkpoint.output import output_folder, require_space
from prefold.convert.checkpoint.safetensors_file import write_file
from prefold.convert.checkpoint.source import Source, add_weights, open_config
from prefold.convert.errors import StorageError
from prefold.convert.fold.first_layer import require_device, require_loadable, require_plain
from prefold.convert.fold.tensors import plan_weights, share_shards, write_index, write_shards
from prefold.convert.inspect import Inspection, savings_of
from prefold.convert.model.load import resolve_dtype
from prefold.convert.model.skeleton import build_on_meta
from prefold.convert.options import FoldOptions, flag
from prefold.convert.prepare import Prepared, prepare_source
from prefold.convert.table_writer import TableWriter
from prefold.convert.write import (
    circumstances,
    folded_config,
    runtime_code,
    source_name,
    versions,
    write_card,
    write_config,
)


class ConversionProgress:
    """Receives the progress of a conversion; this one ignores it."""

    def inspected(self, inspection: Inspection) -> None:
        """Receive the inspection, before the first byte is written."""

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Receive that ``done`` bytes of a stage that has ``total`` are written."""


class Report(Protocol):
    """The result of a check of a folded checkpoint."""

    def as_json(self) -> dict[str, Any]:
        """Return its figures."""

    def as_markdown(self) -> str:
        """Return its figures for a model card."""


Check = Callable[[Prepared, Path], Report]


@dataclass(frozen=True)
class Written:
    """The cost of writing a folded checkpoint: seconds until it lay on the disk, downloads and check apart, and bytes.

    Attributes:
        shared_bytes: of files that were linked or cloned, and not written.
    """

    seconds: float
    bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        verification: of ``check``; None where none was asked for.
        left_out: files of the source that did not go along, folders as ``name/``.
        notes: differences between the source's index and its shards.
    """

    out: Path
    inspection: Inspection
    verification: Report | None
    written: Written
    left_out: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        apart = {"written": asdict(self.written), "left_out": self.left_out, "notes": self.notes}
        return {"out": str(self.out)} | _figures(self.inspection, self.verification) | apart


def convert_checkpoint(
    model: str,
    out: Path,
    *,
    revision: str | None = None,
    options: FoldOptions = FoldOptions(),  # frozen
    check: Check | None = None,
    progress: ConversionProgress = ConversionProgress(),  # noqa: B008  # without state
) -> Conversion:
    """Fold ``model`` into ``out``, which appears only when it is whole and ``check``, if given, has passed.

    Raises:
        UnsupportedModel, UsageError, BrokenCheckpoint, HubError: the source cannot be folded or read.
        OutputExists: ``out`` exists and ``options.force`` is not set, or another run is writing it.
        StorageError: there is no space, or ``out`` cannot be written.
    """
    inputs = [path for path in (Path(model), options.adapter) if path is not None and path.exists()]
    with output_folder(out, force=options.force, inputs=inputs) as folder:
        known = _prepare(model, revision, options)
        _require_apart(known.source, options.adapter, out)
        savings = savings_of(known)
        inspection = Inspection(source_name(known.source), known.source.revision, [], savings)
        progress.inspected(inspection)
        begun = time.perf_counter()
        try:
            shared = _write_tensors(known, folder, progress)
            known.side.write(folder)
            if options.adapter:
                remaining_adapter(options.adapter, modules_in_tables(known.study.cuts), folder / ADAPTER_FOLDER)
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
        seconds = time.perf_counter() - begun
        report = check(known, folder) if check else None
        proof = report.as_markdown() if report else "This checkpoint was not verified."
        write_card(folder, known, savings, inspection.verdict, proof)
        result = _figures(inspection, report) | {"versions": versions()}
        (folder / REPORT).write_text(json.dumps(result, indent=2) + "\n")
        size = sum((folder / name).stat().st_size for name in all_files(folder))
    written = Written(seconds, size - shared, shared)
    return Conversion(out, inspection, report, written, known.side.left_out, known.source.notes)


def _prepare(model: str, revision: str | None, options: FoldOptions) -> Prepared:
    """Open and study the source, and refuse what cannot be folded, before the first byte is written."""
    require_device(options.device)
    opened = open_config(model, revision)
    if opened.revision is None:
        opened = add_weights(opened)  # what lies here is looked at first, and what is to be downloaded last
    known = prepare_source(opened, options)
    require_loadable(known.config)
    changing = [flag(name) for name in ("dtype", "adapter") if getattr(options, name)]
    require_plain(known.config, known.study.cuts, changing)
    if options.adapter:
        whole = build_on_meta(known.resolved.model_class, known.config, torch.float32)
        check_adapter(options.adapter, whole, modules_in_tables(known.study.cuts))
    source = add_weights(opened) if opened.revision else opened
    known = replace(known, source=source, dtype=resolve_dtype(source, known.config, options.dtype))
    known.side, known.live  # noqa: B018  # what is wrong with them is found before anything is written
    return known


def _require_apart(source: Source, adapter: Path | None, out: Path) -> None:
    """Refuse an output that would replace one of its inputs, or lie among the source's side files."""
    folder, out = source.folder.resolve(), out.resolve()
    if (folder / CONFIG).is_relative_to(out):
        raise UsageError(f"{out}: the source lies there, and would be replaced")
    if adapter and adapter.resolve().is_relative_to(out):
        raise UsageError(f"{out}: the adapter lies there, and would be replaced")
    for inside in (folder / name for name in source.module_folders):
        if out.is_relative_to(inside):
            raise UsageError(f"{out}: lies among the source's side files")


def _write_tensors(known: Prepared, folder: Path, progress: ConversionProgress) -> int:
    """Write all tensors, and what loads them; returns the bytes that are shared with the source's files."""
    study = known.study
    plan = plan_weights(known.source.entries, known.live, study.cuts, study.ties, study.float32, known.options)
    tables = TableWriter(known, plan)
    shared = share_shards(folder, plan, link=known.options.link)
    rest = [name for name in plan.shards if name not in shared]
    total, kept = sum(tensor.size for tensor in tables.outgoing.values()), plan.shard_bytes(rest)
    require_space(folder, kept + total + known.side.size + (1 << 20))
    write_file(folder / TABLE, tables.outgoing, written=lambda done: progress.advanced("table", done, total))
    write_shards(folder, plan, rest, lambda done: progress.advanced("untouched tensors", done, kept))
    write_index(folder, plan, tables.outgoing)
    code = runtime_code(known.resolved.model_class)
    for name, content in code.items():
        (folder / name).write_bytes(content)
    made = {name: digest.hexdigest() for name, digest in tables.digests.items()}
    computed = circumstances(known.options.device, tables.chunk_tokens)
    write_config(folder, folded_config(known, code | known.side.code, made=made, computed=computed))
    return plan.shard_bytes(shared)


def _figures(inspection: Inspection, report: Report | None) -> dict[str, Any]:
    return {"inspection": inspection.as_json(), "verification": report.as_json() if report else None}
