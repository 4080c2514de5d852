"""What makes a folder of tensors a folded checkpoint: config, runtime module, side files."""

import hashlib
import json
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from prefold.convert.files import CONFIG, REMOTE_RUNTIME, RUNTIME, RUNTIMES, copied_name, side_files
from prefold.convert.model import Kind
from prefold.convert.source import Source
from prefold.convert.study import Study
from prefold.convert.weights import made_tensors


def folded_config(
    source: Source,
    config: PreTrainedConfig,
    kind: Kind,
    study: Study,
    live: dict[str, str],
    *,
    dtype: torch.dtype,
    placement: str = "device",
    text_only: bool = False,
    made: dict[str, str] | None = None,
    computed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Derive the folded ``config.json`` from the source's: all of it stays but what says how to load it.

    ``live`` are the parameters that the source's tensors become; ``placement`` is where tables are to lie; ``made`` are
    the hashes of the tensors that were computed; ``computed`` says how, as ``circumstances`` tells it.
    """
    # Importing the runtime registers folded types with transformers; only who folds should cause that.
    from prefold.runtime.modeling_prefold import FORMAT, folded_name

    architecture = folded_name(kind.model_class, type(config))
    module = (RUNTIME if is_native(kind.model_class) else REMOTE_RUNTIME).removesuffix(".py")
    tensors = made_tensors(live, study.cuts)
    untied = {} if study.ties.others else {"tie_word_embeddings": False}
    return source.config | {
        "model_type": f"prefold_{config.model_type}",
        "architectures": [architecture],
        "auto_map": source.config.get("auto_map", {})
        | {
            "AutoConfig": f"{module}.Prefold{type(config).__name__}",
            kind.auto_class: f"{module}.{architecture}",
        },
        **untied,
        "dtype": str(dtype).removeprefix("torch."),
        "prefold": {
            "format": FORMAT,
            "source": source_name(source),
            "revision": source.revision,
            "source_model_type": config.model_type,
            "placement": placement,
            "folds": [cut.section(tensors[f"{cut.embedding}.weight"].name) for cut in study.cuts],
            "refused_inputs": kind.other_inputs if text_only else [],
            "made": made or {},
            "runtime_sha256": {name: hashlib.sha256(_runtime(name)).hexdigest() for name in RUNTIMES},
            "computed": computed or {},
            "versions": versions(),
        },
    }


def source_name(source: Source) -> str:
    """Name the source without the path that it happens to have on one machine."""
    return source.name if source.revision else source.folder.resolve().name


def circumstances(device: str, chunk_tokens: list[int]) -> dict[str, Any]:
    """Return what the last bits of a table may depend on: where it was computed, and how many rows at once."""
    return {
        "device": torch.device(device).type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "chunk_tokens": chunk_tokens,
    }


def versions() -> dict[str, str]:
    """Return the versions of what computed a table."""
    return {"prefold": version("prefold"), "torch": torch.__version__, "transformers": transformers_version}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``config.json``."""
    config.pop("torch_dtype", None)  # the older name of ``dtype``, which is set
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def is_native(kind: type[Any]) -> bool:
    """Say whether transformers itself has the class."""
    return kind.__module__.startswith("transformers.")


def copy_runtime(folder: Path, config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> None:
    """Copy the modules that run a folded checkpoint, verbatim.

    A source that brings its own code, which is among its side files, gets a module beside it that joins the two.
    """
    for name in RUNTIMES:
        (folder / name).write_bytes(_runtime(name))
    if is_native(model_class):
        return
    kinds: list[type[Any]] = [type(config), model_class]
    runtime = RUNTIME.removesuffix(".py")
    imports = [f"from .{kind.__module__.rpartition('.')[2]} import {kind.__name__}" for kind in kinds]
    derived = [f"Prefold{kind.__name__} = derive({kind.__name__}, __name__)" for kind in kinds]
    (folder / REMOTE_RUNTIME).write_text("\n".join([*imports, f"from .{runtime} import derive", "", *derived]) + "\n")


def _runtime(name: str) -> bytes:
    return files("prefold.runtime").joinpath(name).read_bytes()


def copy_side_files(source: Source, folder: Path) -> None:
    """Copy tokenizer, chat template, licence and all else verbatim; the source's model card under another name."""
    for name in side_files(source.folder):
        target = folder / copied_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, target)
