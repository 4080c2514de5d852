"""The model card of a folded checkpoint."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from prefold.convert.checkpoint.files import CARD, own_file
from prefold.convert.checkpoint.source import Source
from prefold.convert.errors import ModelFailed, model_code
from prefold.convert.inspect import Inspection
from prefold.convert.prepare import Prepared
from prefold.convert.write import source_name, versions

_LOAD = """from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def _carried(source: Source) -> dict[str, Any]:
    """Return what the source's own card says that holds for a folded checkpoint too, its licence first."""
    if CARD not in source.data_names():
        return {}
    text = own_file(source.folder, CARD).read_text(encoding="utf-8", errors="replace")
    try:
        with model_code():
            data = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except ModelFailed:  # it is copied all the same
        return {}
    kept = ("license", "license_name", "license_link", "language", "pipeline_tag")
    return {key: data[key] for key in kept if data.get(key)}


def _front_matter(source: Source) -> str:
    data = {"library_name": "transformers", "tags": ["prefold"]} | _carried(source)
    data |= {"base_model": source.name} if source.revision else {}
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n"


def write_card(folder: Path, known: Prepared, inspection: Inspection, report: str) -> None:
    """Write the card: what this is, how to load it, what it is worth, and the proof."""
    source, savings, verdict = known.source, inspection.savings, inspection.verdict
    assert savings is not None  # it folds
    name = " ".join(source_name(source).split())
    command = known.options.command(source_name(source), source.revision)
    origin = f"`{name}`, commit `{source.revision}`," if source.revision else f"`{name}`"
    tables = " and ".join(f"{side.rows:,} rows of {side.row_width:,} values" for side in savings.sides)
    told = verdict if verdict.startswith("saves") else f"is {verdict}"
    text = f"""{_front_matter(source)}
# {name}, first layer folded

The first layer's token-pure modules of {origin} were computed for every token of the vocabulary and stored in a
table, which this checkpoint looks up where its source reads weights. By prefold's own count that {told}.

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
