"""Source checkpoint in, folded checkpoint out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from prefold.common.errors import UsageError
from prefold.convert.adapter import check_adapter, merge_into_first_layer, modules_in_tables, remaining_adapter
from prefold.convert.card import write_card
from prefold.convert.checkpoint.files import ADAPTER_FOLDER, CONFIG, REPORT, TABLE
from prefold.convert.checkpoint.output import output_folder, require_space
from prefold.convert.checkpoint.safetensors_file import Outgoing, as_bytes, dtype_name, write_file
from prefold.convert.checkpoint.source import Source, add_weights, open_config
from prefold.convert.errors import BrokenCheckpoint, StorageError
from prefold.convert.fold.encoding import asked_for
from prefold.convert.fold.first_layer import load_first_layer, require_device
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.prefetch import ahead
from prefold.convert.fold.quantized import method_of, require_loadable, require_plain, require_token_pure
from prefold.convert.fold.table import added_tensors, chunk_size, table_rows
from prefold.convert.fold.tensors import WeightPlan, plan_weights, untouched, write_index, write_shards
from prefold.convert.inspect import Inspection
from prefold.convert.model.load import resolve_dtype
from prefold.convert.model.skeleton import build_on_meta
from prefold.convert.prepare import Prepared, prepare
from prefold.convert.study import AUTO, Wanted
from prefold.convert.worth import Worth, weigh
from prefold.convert.write import (
    circumstances,
    folded_config,
    runtime_code,
    source_name,
    versions,
    write_config,
)


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


Check = Callable[[Prepared, Path], Report]


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
        cut: which modules are stored: its name, or ``auto`` for the cut that saves most reads.
        max_table: bytes that ``auto`` may store; None for no limit.
        text_only: fold a model that takes images or sounds, too, for token ids alone.
        adapter: a LoRA to merge into the table; what it does elsewhere becomes an adapter of the folded checkpoint.
        placement: where tables are to lie when the folded checkpoint runs: ``device``, ``host`` or ``disk``.
        table_dtype: store columns in it, no longer equal; as values of the model's own type where None.
        quantize_residual: store the residual slice so, too.
    """

    merge_residual: bool = False
    dtype: torch.dtype | None = None
    device: str = "cpu"
    chunk_tokens: int | None = None
    max_shard_size: int | None = None
    force: bool = False
    trust_remote_code: bool = False
    cut: str = AUTO
    max_table: int | None = None
    text_only: bool = False
    adapter: Path | None = None
    placement: str = "device"
    table_dtype: torch.dtype | None = None
    quantize_residual: bool = False

    def wanted(self, dtype: torch.dtype) -> Wanted:
        """Return what a study of a model of ``dtype`` has to look for.

        Raises:
            UsageError: the residual slice is to be smaller, and columns are not.
        """
        return Wanted(
            self.merge_residual,
            cut=self.cut,
            max_values=None if self.max_table is None else self.max_table // dtype.itemsize,
            dtype=dtype,
            smaller=asked_for(self.table_dtype, residual=self.quantize_residual),
        )


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        out: the folded checkpoint.
        inspection: what it is worth.
        verification: what its check said; None where none was asked for.
        left_out: files of the source that did not go along, folders as ``name/``.
    """

    out: Path
    inspection: Inspection
    verification: Report | None
    left_out: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "out": str(self.out),
            "inspection": self.inspection.as_json(),
            "verification": self.verification.as_json() if self.verification else None,
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class _Job:
    known: Prepared
    options: Options
    watch: Watch

    def chunk_tokens(self, cut: Cut) -> int:
        return self.options.chunk_tokens or chunk_size(cut, self.known.dtype.itemsize)


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
    inputs = [path for path in (Path(model), options.adapter) if path is not None and path.exists()]
    with output_folder(out, force=options.force, inputs=inputs) as folder:
        job = _Job(_prepare(model, revision, options), options, watch)
        _require_apart(job.known.source, options.adapter, out)
        worth = _weigh(job.known)
        inspection = Inspection(source_name(job.known.source), job.known.source.revision, [], worth=worth)
        watch.inspected(inspection)
        try:
            _write(job, folder)
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
        report = check(job.known, folder) if check else None
        proof = f"\n{report.as_markdown()}" if report else "\nThis checkpoint was not verified.\n"
        write_card(folder, job.known.source, job.known.kind, worth, inspection.verdict, _command(job), proof)
        result = {"inspection": inspection.as_json(), "verification": report.as_json() if report else None}
        (folder / REPORT).write_text(json.dumps(result | {"versions": versions()}, indent=2) + "\n")
    return Conversion(out, inspection, report, job.known.side.left_out)


def _require_apart(source: Source, adapter: Path | None, out: Path) -> None:
    """Refuse an output that would replace what it is made of, or be one of the source's side files."""
    folder, out = source.folder.resolve(), out.resolve()
    if (folder / CONFIG).is_relative_to(out):
        raise UsageError(f"{out}: the source lies there, and would be replaced")
    if adapter and adapter.resolve().is_relative_to(out):
        raise UsageError(f"{out}: the adapter lies there, and would be replaced")
    for inside in (folder / name for name in source.module_folders):
        if out.is_relative_to(inside):
            raise UsageError(f"{out}: lies among the source's side files")


def _prepare(model: str, revision: str | None, options: Options) -> Prepared:
    """Find everything out that can be found out before the first byte is written."""
    require_device(options.device)
    opened = open_config(model, revision)
    if opened.revision is None:
        opened = add_weights(opened)  # what lies here is looked at first, and what is to be downloaded last
    known = prepare(
        opened,
        options.wanted,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        text_only=options.text_only,
    )
    require_loadable(known.config)
    cuts = known.study.cuts
    require_plain(known.config, cuts, [f"--{name}" for name in ("dtype", "adapter") if getattr(options, name)])
    if options.adapter:
        whole = build_on_meta(known.kind.model_class, known.config, torch.float32)
        check_adapter(options.adapter, whole, modules_in_tables(cuts))
    source = add_weights(opened) if opened.revision else opened
    known = replace(known, source=source, dtype=resolve_dtype(source, known.config, options.dtype))
    known.side, known.live  # noqa: B018  # what is wrong with them is found before anything is written
    return known


def _weigh(known: Prepared) -> Worth:
    """Tell what the fold is worth; of quantized weights, what is stored of them is counted as it lies there."""
    method, entries = method_of(known.config), known.source.entries
    worth = weigh(known.study, known.kind, known.dtype, method)
    if method is None:
        return worth
    kept = sum(entry.size for entry in untouched(entries, known.live, known.study.cuts, known.study.ties).values())
    note = f"weights are quantized ({method}): figures are those of unquantized ones, but for the checkpoint's bytes"
    before, after = known.source.weight_bytes, kept + worth.table_bytes
    return replace(worth, checkpoint_before=before, checkpoint_after=after, note=note)


def _write(job: _Job, folder: Path) -> None:
    source, study, watch = job.known.source, job.known.study, job.watch
    options = job.options
    plan = plan_weights(
        source.entries,
        job.known.live,
        study.cuts,
        study.ties,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
    )
    maker = _Maker(job, plan)
    total, kept = sum(tensor.size for tensor in maker.outgoing.values()), plan.shard_bytes
    require_space(folder, kept + total + job.known.side.size + (1 << 20))
    write_file(folder / TABLE, maker.outgoing, written=lambda done: watch.advanced("table", done, total))
    write_shards(folder, plan, lambda done: watch.advanced("untouched tensors", done, kept))
    write_index(folder, plan, maker.outgoing)
    code = runtime_code(job.known.config, job.known.kind.model_class)
    section = folded_config(
        job.known,
        code | job.known.side.code,
        placement=options.placement,
        made={name: digest.hexdigest() for name, digest in maker.digests.items()},
        computed=circumstances(job.options.device, [job.chunk_tokens(cut) for cut in study.cuts]),
    )
    write_config(folder, section)
    for name, content in code.items():
        (folder / name).write_bytes(content)
    job.known.side.write(folder)
    if options.adapter:
        remaining_adapter(options.adapter, modules_in_tables(study.cuts), folder / ADAPTER_FOLDER)


class _Maker:
    """Computes tables and what goes with them, each when it is written, and hashes what it made."""

    def __init__(self, job: _Job, plan: WeightPlan) -> None:
        self._job = job
        self.digests = {made.name: hashlib.sha256() for made in plan.made.values()}
        self.outgoing: dict[str, Outgoing] = {}
        self._ready: dict[str, torch.Tensor] = {}
        for cut in job.known.study.cuts:
            self._announce(plan, f"{cut.embedding}.weight", partial(self._table, cut))
            for parameter in cut.added:
                self._announce(plan, parameter, partial(self._added, cut, parameter))

    def _announce(self, plan: WeightPlan, parameter: str, pieces: Callable[[], Iterable[torch.Tensor]]) -> None:
        made = plan.made[parameter]
        kind = made.kind(self._job.known.dtype)
        chunks = partial(self._hashed, made.name, pieces)
        self.outgoing[made.name] = Outgoing(dtype_name(kind), made.shape, prod(made.shape) * kind.itemsize, chunks)

    def _hashed(self, name: str, pieces: Callable[[], Iterable[torch.Tensor]]) -> Iterator[memoryview]:
        for rows in pieces():
            piece = as_bytes(rows)
            self.digests[name].update(piece)
            yield piece

    @cached_property
    def _model(self) -> PreTrainedModel:
        known, options = self._job.known, self._job.options
        model_class, study = known.kind.model_class, known.study
        how: dict[str, Any] = {"dtype": known.dtype, "device": options.device}
        model = load_first_layer(known.source, model_class, known.config, study.stacks, study.unreached, **how)
        if options.adapter:
            model = merge_into_first_layer(model, options.adapter, modules_in_tables(study.cuts))
        if method_of(known.config):
            for cut in study.cuts:
                require_token_pure(model, cut)
        return model

    def _table(self, cut: Cut) -> Iterator[torch.Tensor]:
        return ahead(self._stored(cut))

    def _stored(self, cut: Cut) -> Iterator[torch.Tensor]:
        for rows in table_rows(self._model, cut, self._job.chunk_tokens(cut)):
            if rows.dtype != self._job.known.dtype:
                raise BrokenCheckpoint(
                    f"the first layer answers in {rows.dtype}, not in the model's {self._job.known.dtype}"
                )
            yield cut.encoding.encode(rows) if cut.encoding else rows

    def _added(self, cut: Cut, parameter: str) -> list[torch.Tensor]:
        if parameter not in self._ready:
            self._ready |= added_tensors(self._model, cut, self._job.known.dtype)
        return [self._ready.pop(parameter)]


def _command(job: _Job) -> str:
    """Spell the command that makes this checkpoint again."""
    options = job.options
    parts = ["prefold convert", source_name(job.known.source), "OUT"]
    parts += [f"--revision {job.known.source.revision}"] if job.known.source.revision else []
    parts += ["--merge-residual"] if options.merge_residual else []
    parts += [f"--cut {options.cut}"] if options.cut != AUTO else []
    parts += [f"--max-table {options.max_table}"] if options.max_table else []
    parts += ["--text-only"] if options.text_only else []
    parts += [f"--dtype {str(options.dtype).removeprefix('torch.')}"] if options.dtype else []
    parts += [f"--placement {options.placement}"] if options.placement != "device" else []
    parts += [f"--table-dtype {str(options.table_dtype).removeprefix('torch.')}"] if options.table_dtype else []
    parts += ["--quantize-residual"] if options.quantize_residual else []
    parts += [f"--adapter {options.adapter.resolve().name}"] if options.adapter else []
    parts += [f"--device {options.device}"] if options.device != "cpu" else []
    parts += [f"--chunk-tokens {options.chunk_tokens}"] if options.chunk_tokens else []
    parts += [f"--max-shard-size {options.max_shard_size}"] if options.max_shard_size else []
    return " ".join(parts)
