"""The model card of a folded checkpoint."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from prefold.convert.files import CARD
from prefold.convert.folded import source_name, versions
from prefold.convert.inspection import Worth
from prefold.convert.source import Source

_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def _carried(source: Source) -> dict[str, Any]:
    """Return what the source's own card says that holds for a folded checkpoint too, its licence first."""
    card = source.folder / CARD
    data = (
        ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict() if card.exists() else {}
    )
    kept = ("license", "license_name", "license_link", "language", "pipeline_tag")
    return {key: data[key] for key in kept if data.get(key)}


def _front_matter(source: Source) -> str:
    data = {"library_name": "transformers", "tags": ["prefold"]} | _carried(source)
    if source.revision:
        data |= {"base_model": source.name, "base_model_relation": "finetune"}
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n"


def write_card(folder: Path, source: Source, worth: Worth, verdict: str, command: str, report: str) -> None:
    """Write the card: what this is, how to load it, what it is worth, and the proof."""
    name = source_name(source)
    text = f"""{_front_matter(source)}
# {name}, first layer folded

The first layer's token-pure modules of `{name}`{f" (commit `{source.revision}`)" if source.revision else ""} were
computed for every token of the vocabulary and stored in a table. This checkpoint says exactly what its source says,
and reads fewer bytes for it: {verdict}.

```python
{_LOAD.format(name="OUT")}
```

where `OUT` is this folder or repository. With prefold installed, `import prefold.runtime` and leave
`trust_remote_code` out.

| | |
|---|---|
| folded modules | {", ".join(f"`{column.module}`" for column in worth.columns)} |
| table | {worth.rows:,} rows of {worth.row_width:,} values, {worth.table_bytes:,} bytes |
| checkpoint | {worth.checkpoint_before:,} bytes before, {worth.checkpoint_after:,} after |
| command | `{command}` |
| versions | {", ".join(f"{package} {number}" for package, number in versions().items())} |
{report}"""
    (folder / CARD).write_text(text.rstrip() + "\n", encoding="utf-8")
