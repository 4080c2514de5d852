"""The two models of an export, loaded as decoders: source and fold."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from prefold.common.errors import UsageError
from prefold.convert import BrokenCheckpoint, UnsupportedModel, flag
from prefold.convert.checkpoint import Source, open_folder, open_source
from prefold.convert.fold import quiet_loading
from prefold.export.errors import exporter_code

_DECODER = "AutoModelForCausalLM"
# Of a config: where these differ, logits cannot be compared.
_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


def open_folded(folder: Path, dtype: str) -> Source:
    """Open a folded checkpoint that exports as it is.

    Raises:
        UsageError: it is none, or its rows were computed in another type than ``dtype``.
        UnsupportedModel: it is no decoder, or needs code of its source.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    opened = open_folder(folder)
    fold = opened.config.get("prefold")
    if not isinstance(fold, dict):
        raise UsageError(f"{folder}: no folded checkpoint: prefold convert {folder} OUT makes one")
    _require_decoder(opened.config)
    if fold["dtype"] != dtype:
        fix = f"prefold convert {fold['source']} OUT {flag('dtype')} {dtype}"
        raise UsageError(f"{folder}: a fold of {fold['dtype']}: for an export in {dtype}, fold it so first: {fix}")
    return opened


def _require_decoder(config: dict[str, Any]) -> None:
    modules = {auto: str(name).partition(".")[0] for auto, name in config["auto_map"].items()}
    if _DECODER not in modules:
        raise UnsupportedModel(["no decoder: an export takes what AutoModelForCausalLM loads"])
    if modules[_DECODER] != "modeling_prefold":
        raise UnsupportedModel(["it needs code of its source, which an export does not run"])


def open_source_of(folded: Source, given: str | None) -> Source:
    """Open the source of a fold: the one that is given, or the one that its config names.

    Raises:
        UsageError: it lies where only ``--source`` can tell, is a fold, or another model.
    """
    fold = folded.config["prefold"]
    if given is None and fold["revision"] is None:
        raise UsageError(f"{fold['source']}: the source of the fold was a folder: pass it as --source")
    opened = open_source(given or fold["source"], None if given else fold["revision"])
    if "prefold" in opened.config:
        raise UsageError(f"{opened.name}: a folded checkpoint: the proof needs the source that it was made of")
    other = [name for name in _SHAPE if opened.config.get(name) != folded.config.get(name)]
    if other:
        raise UsageError(f"{opened.name}: not the source of the fold: another {', '.join(other)}")
    return opened


def load_decoder(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load a decoder from a folder without running any code that lies there.

    Raises:
        BrokenCheckpoint: its table is not the one that was written.
    """
    from prefold.runtime.storage_prefold import TableError  # the package lets transformers load folds by its own code

    try:
        with exporter_code("does not load"), quiet_loading():
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options).eval()
    except TableError as error:
        raise BrokenCheckpoint(str(error)) from error


def context_of(model: Any, asked: int | None) -> int:
    """Return the tokens that a text may have: as asked for, or as the model's config has them.

    Raises:
        UsageError: the model has fewer positions than are asked for.
    """
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if asked and known and asked > known:
        raise UsageError(f"--context {asked}: the model has {known} positions")
    return asked or known or 2048
