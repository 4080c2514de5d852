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
from prefold.export.loading import context_of, load_decoder, open_folded, open_source_of
from prefold.export.proof import (
    NEW_TOKENS,
    check_greedy,
    check_logits,
    check_process,
    check_rows,
    run_artefact,
    run_eager,
)
from prefold.export.split_rows import split_tables, tensors_of
from prefold.export.target import Distance, Logits, Target, target_of
from prefold.verify import Verification, VerificationFailed, token_prompts

# Types that a runtime computes in on a CPU.
DTYPES = {"onnx": ("float32", "float16"), "openvino": ("float32",), "executorch": ("float32",)}
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
    dtype: str = "float32",
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
    _require_known(to, dtype, context)
    if out.exists():
        raise OutputExists(f"{out}: exists already")
    opened = open_folded(folded, dtype)
    origin = open_source_of(opened, source)
    with output_folder(out, inputs=[folded, origin.folder]) as folder:
        try:
            return _Export(to, opened, origin, folder, getattr(torch, dtype), context, progress).run(out)
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error


def _require_known(to: str, dtype: str, context: int | None) -> None:
    if to not in DTYPES:
        raise UsageError(f"--to {to}: none of {', '.join(DTYPES)}")
    if dtype not in DTYPES[to]:
        raise UsageError(f"--dtype {dtype}: {to} computes in {' and '.join(DTYPES[to])}")
    if context is not None and context < 2 * NEW_TOKENS:
        raise UsageError(f"--context {context}: a proof takes {2 * NEW_TOKENS} tokens")
    require_runtime(to)


@dataclass(frozen=True)
class _Export:
    """One export, into a folder that is not yet in its place."""

    to: str
    opened: Source
    origin: Source
    folder: Path
    dtype: torch.dtype
    context: int | None
    progress: Progress

    def run(self, out: Path) -> Exported:
        """Export source and fold, and compare them in the runtime."""
        target = target_of(self.to)
        eager, allowed = self._measure_source(target)
        self.progress("exporting the fold")
        model = load_decoder(self.opened.folder, self.dtype, prefold_placement="disk")
        if any(fold["table"]["encoding"] for fold in model.prefold_folds):  # smaller rows are not equal to the source's
            eager = run_eager(model, eager.prompts, eager.continued, batched=target.batched)
        tables, context = split_tables(model), context_of(model, self.context)
        target.write(model, self.folder, tensors_of(tables), context)
        _write_beside(self.opened, self.folder)
        self.progress(f"running it in {target.name}")
        run = run_artefact(target, self.folder, eager)
        checks = {
            "runtime": check_process(target, run),
            "rows": check_rows(target, self.folder, tables),
            "logits": check_logits(run, eager, allowed),
            "greedy": check_greedy(run, eager, allowed),
        }
        return Exported(out, self._judged(Verification(self.origin.name, str(out), checks)), context)

    def _measure_source(self, target: Target) -> tuple[Logits, Distance]:
        """Return what the source says in eager, and how far its own artefact is from that."""
        self.progress("exporting the source")
        model = load_decoder(self.origin.folder, self.dtype)
        context = context_of(model, self.context)
        vocabulary, longest = model.config.get_text_config().vocab_size, min(_LONGEST, context - NEW_TOKENS)
        prompts = token_prompts(self.origin.folder, vocabulary, None, longest=longest)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".source-") as own:
            target.write(model, Path(own), [], context)
            eager = run_eager(model, prompts, batched=target.batched)
            return eager, run_artefact(target, Path(own), eager).distance(eager)

    def _judged(self, verification: Verification) -> Verification:
        """Write the report of an artefact that passes."""
        if not verification.passed:
            raise VerificationFailed(verification)
        packages = ("prefold", "torch", "transformers", *EXTRAS[self.to])
        report = {
            "source": source_name(self.origin),
            "fold": self.opened.config["prefold"]["tensor_sha256"],
            "verification": verification.as_json(),
            "versions": {name: version(name) for name in packages},
        }
        (self.folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        return verification


def _write_beside(opened: Source, folder: Path) -> None:
    """Write the tokenizer and the source's other side files, and its config."""
    for name in all_files(opened.folder):
        if name != CARD and (is_side_file(name) or name == SOURCE_CARD):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(opened.folder / name, folder / name)
    kept = {name: value for name, value in opened.config.items() if name not in ("prefold", "auto_map")}
    (folder / CONFIG).write_text(json.dumps(kept, indent=2) + "\n")
