"""The config, the runtime modules and the model card of a folded checkpoint."""

import hashlib
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from prefold.convert.checkpoint.files import CARD, CONFIG, REMOTE_RUNTIME, RUNTIME, RUNTIMES, own_file
from prefold.convert.checkpoint.side_files import module_of, plain, strings
from prefold.convert.checkpoint.source import Source
from prefold.convert.errors import ModelFailed, model_code
from prefold.convert.fold.tensors import made_tensors
from prefold.convert.model.load import auto_classes, base_class
from prefold.convert.prepare import Prepared
from prefold.convert.savings import Savings


def folded_config(
    known: Prepared,
    code: dict[str, bytes],
    *,
    made: dict[str, str] | None = None,
    computed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Derive the folded ``config.json`` from the source's: all of it stays but the code that loads it.

    Its ``model_type`` and ``architectures`` stay, too: programs choose tokenizers, pipelines and much else by them.

    ``code`` are the modules that run it, by file; ``made`` are the hashes of the computed tensors; ``computed`` are the
    ``circumstances``.
    """
    # Importing the runtime changes how transformers loads models; only a conversion should cause that.
    from prefold.runtime.modeling_prefold import FORMAT

    source, resolved, study = known.source, known.resolved, known.study
    module = (RUNTIME if is_native(resolved.model_class) else REMOTE_RUNTIME).removesuffix(".py")
    tensors = made_tensors(known.live, study.cuts)
    untied = {} if study.ties.others else {"tie_word_embeddings": False}
    kept: dict[str, Any] = plain(source.config, ["custom_pipelines"])
    return kept | {
        "auto_map": _reached(source, code) | {auto: f"{module}.{name}" for auto, name in _auto_classes(known).items()},
        **untied,
        "dtype": str(known.dtype).removeprefix("torch."),
        "prefold": {
            "format": FORMAT,
            "source": source_name(source),
            "revision": source.revision,
            "dtype": str(known.dtype).removeprefix("torch."),
            "placement": known.options.placement,
            "folds": [cut.as_json(tensors[f"{cut.embedding}.weight"].name) for cut in study.cuts],
            "refused_inputs": resolved.other_inputs if known.options.text_only else [],
            "tensor_sha256": made or {},
            "runtime_sha256": {name: hashlib.sha256(content).hexdigest() for name, content in code.items()},
            "computed": computed or {},
            "versions": versions(),
        },
    }


def _auto_classes(known: Prepared) -> dict[str, str]:
    """Return the names of the folded classes, of the model and of its base model, by their auto classes."""
    model_class, base, found = known.resolved.model_class, base_class(known.config), dict[str, str]()
    prefix, cuts = f"{model_class.base_model_prefix}.", known.study.cuts
    is_inside = all(name.startswith(prefix) for cut in cuts for name in [cut.embedding, *cut.eliminated])
    if base and is_inside and f"{base.base_model_prefix}." == prefix:
        found = dict.fromkeys(auto_classes(base, known.config), base.__name__)
    names = [known.resolved.auto_class, *auto_classes(model_class, known.config)]
    return found | dict.fromkeys(names, model_class.__name__)


def _reached(source: Source, code: dict[str, bytes]) -> dict[str, Any]:
    """Return the entries of the source's ``auto_map`` whose modules go along."""
    auto_map: dict[str, Any] = source.config.get("auto_map") or {}
    return {key: names for key, names in auto_map.items() if all(module_of(name) in code for name in strings(names))}


def source_name(source: Source) -> str:
    """Name the source without the path that it happens to have on one machine."""
    return source.name if source.revision else source.folder.resolve().name


def circumstances(device: str, chunk_tokens: list[int]) -> dict[str, Any]:
    """Return the conditions that the last bits of a table depend on: device, processor, threads, rows at once."""
    return {
        "device": torch.device(device).type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "chunk_tokens": chunk_tokens,
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute a table."""
    return {"prefold": version("prefold"), "torch": torch.__version__, "transformers": transformers_version}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``config.json``."""
    config.pop("torch_dtype", None)  # the older name of ``dtype``, which is set
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def is_native(model_class: type[Any]) -> bool:
    """Return whether transformers itself has the class."""
    return model_class.__module__.startswith("transformers.")


def runtime_code(model_class: type[PreTrainedModel]) -> dict[str, bytes]:
    """Return the modules that run a folded checkpoint, by file.

    Beside a source's own code, which goes along, lies a module that joins the two.
    """
    code = {name: files("prefold.runtime").joinpath(name).read_bytes() for name in RUNTIMES}
    if is_native(model_class):
        return code
    name, module = model_class.__name__, model_class.__module__.rpartition(".")[2]
    lines = [f"from .{module} import {name} as Source", f"from .{RUNTIME.removesuffix('.py')} import derive"]
    return code | {REMOTE_RUNTIME: "\n".join([*lines, "", f"{name} = derive(Source, __name__)", ""]).encode()}


_LOAD = """from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


# Metadata of a card that hold for a fold as well: the hub chooses widgets, snippets and libraries by them.
_CARRIED = ("license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "tags", "datasets")


def _carried(source: Source) -> dict[str, Any]:
    """Return the metadata of the source's own card that hold for a folded checkpoint too."""
    if CARD not in source.data_names():
        return {}
    text = own_file(source.folder, CARD).read_text(encoding="utf-8", errors="replace")
    try:
        with model_code():
            data = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except ModelFailed:  # it is copied all the same
        return {}
    return {key: data[key] for key in _CARRIED if data.get(key)}


def _front_matter(source: Source) -> str:
    data = {"library_name": "transformers"} | _carried(source)
    tags = data.get("tags")
    data["tags"] = [*(tag for tag in (tags if isinstance(tags, list) else []) if tag != "prefold"), "prefold"]
    data |= {"base_model": source.name} if source.revision else {}
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n"


def write_card(folder: Path, known: Prepared, savings: Savings, verdict: str, report: str) -> None:
    """Write the card: description, use, figures, and proof."""
    source = known.source
    name = " ".join(source_name(source).split())
    command = known.options.command(source_name(source), source.revision)
    origin = f"`{name}`, commit `{source.revision}`," if source.revision else f"`{name}`"
    tables = " and ".join(f"{side.rows:,} rows of {side.row_width:,} values" for side in savings.sides)
    worth = verdict if verdict.startswith("saves") else f"is {verdict}"
    text = f"""{_front_matter(source)}
# {name}, first layer folded

The first layer's token-pure modules of {origin} were computed for every token of the vocabulary and stored in a
table, which this checkpoint looks up where its source reads weights. By prefold's own count that {worth}.

```python
{_LOAD.format(name="OUT", auto_class=known.resolved.auto_class)}
```

where `OUT` is this folder or repository. With prefold installed, `import prefold.runtime` and leave
`trust_remote_code` out.

| | |
|---|---|
| folded modules | {", ".join(f"`{column.module}`" for column in savings.columns)} |
| table | {tables}, {savings.table_bytes:,} bytes |
| checkpoint | {savings.checkpoint_before:,} bytes before, {savings.checkpoint_after:,} after |
| command | `{command}` |
| versions | {", ".join(f"{package} {number}" for package, number in versions().items())} |

{report}"""
    (folder / CARD).write_text(text.rstrip() + "\n", encoding="utf-8", errors="backslashreplace")
