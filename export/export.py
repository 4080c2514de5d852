"""A folded checkpoint in, an artefact of an edge runtime out."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prefold.common.errors import UsageError
from prefold.convert import OutputExists, StorageError, source_name
from prefold.convert.checkpoint import CARD, CONFIG, REPORT, SOURCE_CARD, Source, all_files, is_side_file, output_folder
from prefold.export.errors import EXTRAS, require_runtime
from prefold.export.genai import FILE, context_of, genai_config
from prefold.export.graph import trace_decoder
from prefold.export.loading import load_decoder, open_folded, open_source_of
from prefold.export.proof import (
    NEW_TOKENS,
    Logits,
    check_greedy,
    check_logits,
    check_process,
    check_rows,
    run_artefact,
    run_eager,
)
from prefold.export.split_rows import split_tables
from prefold.verify import Outcome, Verification, VerificationFailed, token_prompts

# Types that onnxruntime's CPU computes in.
DTYPES = ("float32", "float16")
_LONGEST = 64
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """The result of an export: its folder, its proof, and the tokens that a text may have there."""

    out: Path
    verification: Verification
    context: int

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {"out": str(self.out), "context": self.context, "verification": self.verification.as_json()}


def export_checkpoint(
    folded: Path,
    out: Path,
    *,
    to: str = "onnx",
    source: str | None = None,
    dtype: str = DTYPES[0],
    context: int | None = None,
    progress: Progress = lambda _: None,
) -> Exported:
    """Export a folded decoder with its cache to ``out``, which appears when it is whole and proven in its runtime.

    Raises:
        MissingRuntime: an extra is not installed.
        UsageError, UnsupportedModel, BrokenCheckpoint, HubError: fold or source cannot be read, or are of another type.
        NotExported: the exporters do not take the model, or the runtime lacks an operator.
        VerificationFailed: the artefact does not return what the source does.
        OutputExists, StorageError: ``out`` exists, or cannot be written.
    """
    _require_known(to, dtype)
    if out.exists():
        raise OutputExists(f"{out}: exists already")
    opened = open_folded(folded, dtype)
    origin = open_source_of(opened, source)
    with output_folder(out, inputs=[folded, origin.folder]) as folder:
        try:
            return _export(opened, origin, folder, out, getattr(torch, dtype), context, progress)
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error


def _require_known(to: str, dtype: str) -> None:
    if to not in EXTRAS:
        raise UsageError(f"--to {to}: none of {', '.join(EXTRAS)}")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: onnxruntime computes in {' and '.join(DTYPES)}")
    require_runtime(to)


def _export(
    opened: Source, origin: Source, folder: Path, out: Path, dtype: torch.dtype, asked: int | None, progress: Progress
) -> Exported:
    eager, allowed = _measure_source(origin, folder, dtype, progress)
    progress("exporting the fold")
    model = load_decoder(opened.folder, dtype, prefold_placement="disk")
    if any(fold["table"]["encoding"] for fold in model.prefold_folds):
        eager = run_eager(model, eager.prompts, eager.continued)  # smaller rows are not equal to the source's
    tables = split_tables(model)
    graph, context = trace_decoder(model), context_of(model, asked)
    graph.save(folder, [f"{module}.{name}" for module, rows in tables.items() for name in rows.extents])
    _write_beside(opened, folder, genai_config(model, graph, context))
    progress("running it in onnxruntime")
    run = run_artefact(folder, eager)
    checks = {
        "runtime": check_process(run),
        "rows": check_rows(folder, tables),
        "logits": check_logits(run, eager, allowed),
        "greedy": check_greedy(run, eager, allowed),
    }
    return _judged(opened, origin, folder, out, checks, context)


def _measure_source(origin: Source, folder: Path, dtype: torch.dtype, progress: Progress) -> tuple[Logits, float]:
    """Return what the source says in eager, and how far its own artefact is from that."""
    progress("exporting the source")
    model = load_decoder(origin.folder, dtype)
    vocabulary, most = model.config.get_text_config().vocab_size, context_of(model, None) - NEW_TOKENS
    graph = trace_decoder(model)
    eager = run_eager(model, token_prompts(origin.folder, vocabulary, None, longest=min(_LONGEST, most)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".source-") as own:
        graph.save(Path(own), [])
        return eager, run_artefact(Path(own), eager).distance(eager)


def _write_beside(opened: Source, folder: Path, genai: dict[str, Any]) -> None:
    """Write the tokenizer and the source's other side files, its config, and what ONNX Runtime GenAI reads."""
    for name in all_files(opened.folder):
        if name != CARD and (is_side_file(name) or name == SOURCE_CARD):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(opened.folder / name, folder / name)
    kept = {name: value for name, value in opened.config.items() if name not in ("prefold", "auto_map")}
    (folder / CONFIG).write_text(json.dumps(kept, indent=2) + "\n")
    (folder / FILE).write_text(json.dumps(genai, indent=2) + "\n")


def _judged(
    opened: Source, origin: Source, folder: Path, out: Path, checks: dict[str, Outcome], context: int
) -> Exported:
    verification = Verification(origin.name, str(out), checks)
    if not verification.passed:
        raise VerificationFailed(verification)
    packages = ("prefold", "torch", "transformers", *EXTRAS["onnx"])
    report = {
        "source": source_name(origin),
        "fold": opened.config["prefold"]["tensor_sha256"],
        "verification": verification.as_json(),
        "versions": {name: version(name) for name in packages},
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return Exported(out, verification, context)
