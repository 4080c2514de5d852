"""Trees in files: recorded templates (DeFT's, without text), and a plain JSON of our own."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefold.common.errors import UsageError
from prefold.tree.count.segments import Tree, make_tree

_COLUMNS = ("parent", "tokens", "birth", "end")
# Keys that templates have and plain files have not.
_TEMPLATE, _RECORD = {"source", "commit", "license", "origin", "task"}, {"i", "incomplete"}
_LARGEST = 1 << 40  # sums of more could overflow


@dataclass(frozen=True)
class Forest:
    """The trees of a source.

    Attributes:
        records: trees in the file, with incomplete ones and those beyond a limit.
        complete: those that are not marked as incomplete.
        template: a root stands for its tokens and one more, as in the published figures.
    """

    name: str
    trees: tuple[Tree, ...]
    records: int = 1
    complete: int = 1
    template: bool = False


def read_trees(file: Path, *, limit: int | None = None) -> Forest:
    """Return the complete trees of a file, the first ``limit`` where it is given.

    A template's prompt is its root's tokens + 1, the token that a sequence begins with; a plain file's is as it stands.

    Raises:
        UsageError: the file cannot be read, has no complete tree, or one of those asked for is not a tree.
    """
    content = read_object(file)
    records = _records(file, content)
    template = bool(_TEMPLATE & content.keys()) or any(_RECORD & record.keys() for record in records)
    complete = [(index, record) for index, record in enumerate(records) if not record.get("incomplete")]
    if not complete:
        raise UsageError(f"{file}: no complete tree")
    names = [f"{file.name}, tree {record.get('i', index)}" for index, record in complete]
    chosen = list(zip(names, complete, strict=True))[:limit]
    trees = tuple(_tree(name, record, 1 if template else 0) for name, (_, record) in chosen)
    return Forest(str(file), trees, len(records), len(complete), template)


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; ``UsageError`` without one, with the reason."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or 'not text'}") from error
    if not text.strip():
        raise UsageError(f"{file}: empty")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: not a JSON object")
    return content


def _records(file: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    if "accept_lengths" in content and "trees" not in content:
        raise UsageError(
            f"{file}: accepted lengths, not trees; give speculative:file={file},size=...,prompt=...,cap=..."
        )
    if "trees" not in content and not content.keys() & set(_COLUMNS):
        raise UsageError(f"{file}: neither `trees` nor a tree, whose keys are {', '.join(_COLUMNS)}")
    records = content.get("trees", [content])
    if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
        raise UsageError(f"{file}: `trees` is not a list of trees")
    return records


def _tree(name: str, record: dict[str, Any], more: int) -> Tree:
    missing = [key for key in _COLUMNS if key not in record]
    if missing:
        raise UsageError(f"{name}: without {', '.join(missing)}")
    for key in _COLUMNS:
        _check_integers(f"{name}: `{key}`", record[key])
    tree = make_tree(name, *(record[key] for key in _COLUMNS))
    return replace(tree, prompt=tree.prompt + more)


def _check_integers(what: str, values: object) -> None:
    if not isinstance(values, list):
        raise UsageError(f"{what} is not a list")
    for index, value in enumerate(values):
        if type(value) is not int or abs(value) > _LARGEST:
            raise UsageError(f"{what}: segment {index}: {str(value)[:40]} is not a whole number in range")
