"""Files of a folded checkpoint against those that its source makes."""

import filecmp
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prefold.convert import BrokenCheckpoint, Prepared
from prefold.convert.checkpoint import (
    CARD,
    CONFIG,
    INDEX,
    REPORT,
    TABLE,
    Entry,
    Outgoing,
    Source,
    all_files,
    cast,
    dtype_name,
    own_file,
    passed_through,
)
from prefold.convert.fold import ComputedTensor, made_tensors, untouched
from prefold.verify.checks import Outcome

# Keys of the section that differ between conversions, and the type of each.
_UNCOMPARED: dict[str, Any] = {
    "source": str,
    "revision": str | None,
    "versions": dict,
    "computed": dict,
    "tensor_sha256": dict,
    "runtime_sha256": dict,
}
# Of those values, the keys that lead to one: prefold, computed, chunk_tokens, and a number.
_DEEPEST = 4
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# What git and the hub's client keep in a folder that they have fetched; nothing loads it.
_KEPT_BY_CLIENTS = re.compile(r"\.git/.*|\.gitattributes|\.gitignore|\.cache/huggingface/.*", re.DOTALL)


@dataclass(frozen=True)
class ExpectedCheckpoint:
    """A folded checkpoint derived anew from its source: config, code, and an adapter's remaining files, by name."""

    known: Prepared
    config: dict[str, Any]
    code: dict[str, bytes]
    adapter: dict[str, bytes] = field(default_factory=dict)

    @property
    def made(self) -> dict[str, ComputedTensor]:
        """The computed tensors, by their parameters."""
        return made_tensors(self.known.live, self.known.study.cuts)

    @property
    def untouched(self) -> dict[str, Entry]:
        """The source's tensors that must be in the folded checkpoint, by their names there."""
        study = self.known.study
        return untouched(self.known.source.entries, self.known.live, study.cuts, study.ties)


def sha256(pieces: Iterable[bytes | memoryview]) -> str:
    """Return the hash of bytes that come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every value of decoded JSON with the keys that lead to it; a key may have any character in it."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(part, (*path, key))


def _config_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    found, wanted = dict(_leaves(folded.config)), dict(_leaves(expected.config))
    for path in sorted(found.keys() | wanted.keys(), key=str):
        # As JSON spells them: in Python true is 1, and 1 is 1.0.
        same = path in found and path in wanted and json.dumps(found[path]) == json.dumps(wanted[path])
        if not same and not _is_uncompared(path):
            name = ".".join(map(str, path))
            yield f"{CONFIG}: {name} is {found.get(path)!r}, should be {wanted.get(path)!r}"
    if any(len(path) > _DEEPEST and _is_uncompared(path) for path in found):
        yield f"{CONFIG}: prefold has values that nest deeper than what is written there"
    yield from _uncompared_problems(expected, folded)


def _is_uncompared(path: tuple[Any, ...]) -> bool:
    return path[0] == "prefold" and len(path) > 1 and path[1] in _UNCOMPARED


def _uncompared_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    for key, form in _UNCOMPARED.items():
        if key in folded.config["prefold"] and not isinstance(folded.config["prefold"][key], form):
            yield f"{CONFIG}: prefold.{key} is no {getattr(form, '__name__', form)}"
    chunks = _dict(folded, "computed").get("chunk_tokens", [1] * len(expected.known.study.cuts))
    if not _are_sizes(chunks, len(expected.known.study.cuts)):
        yield f"{CONFIG}: prefold.computed.chunk_tokens is {chunks!r}, should be a number of tokens for each fold"


def _are_sizes(chunks: Any, count: int) -> bool:
    is_list = isinstance(chunks, list) and len(chunks) == count
    return is_list and all(type(chunk) is int and 0 < chunk < 1 << 31 for chunk in chunks)


def _dict(folded: Source, key: str) -> dict[str, Any]:
    value = folded.config["prefold"].get(key)
    return value if isinstance(value, dict) else {}


def _code_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    hashes = _dict(folded, "runtime_sha256")
    for name, ours in expected.code.items():
        path = folded.folder / name
        found = path.read_bytes() if path.is_file() else None
        if found is None:
            yield f"{name}: missing"
        elif sha256([found]) != hashes.get(name):
            yield f"{name}: not the file that was written (its hash differs)"
        elif found != ours:
            what = (
                "source's bytes" if name in expected.known.side.code else "one that this version writes: convert again"
            )
            yield f"{name}: not the {what}"


def _file_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    """Yield files that neither this version would write nor the source has."""
    side, written = expected.known.side, expected.known.side.edited | expected.adapter
    files = {entry.file.relative_to(folded.folder).as_posix() for entry in folded.entries.values()}
    shards = {name for name in files if name == TABLE or _SHARD.fullmatch(name)}
    known = {CONFIG, INDEX, CARD, REPORT, *shards, *expected.code, *side.copied, *written}
    for name in all_files(folded.folder):
        try:
            path = own_file(folded.folder, name)
        except BrokenCheckpoint as problem:
            yield str(problem)
            continue
        if name not in known and not _KEPT_BY_CLIENTS.fullmatch(name):
            yield f"{name}: unexpected, the source has no such file"
        yield from _content_problems(expected, name, path, written)


def _content_problems(expected: ExpectedCheckpoint, name: str, path: Path, written: dict[str, bytes]) -> Iterator[str]:
    copied = expected.known.side.copied
    if name in copied and not filecmp.cmp(path, copied[name], shallow=False):
        yield f"{name}: not the source's bytes"
    if name in written and path.read_bytes() != written[name]:
        yield f"{name}: not {'what remains of the adapter' if name in expected.adapter else 'as it was written'}"


def _table_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    for made in expected.made.values():
        table, dtype = folded.entries.get(made.name), dtype_name(made.dtype_in(expected.known.dtype))
        if table is None:
            yield f"{made.name}: the table is missing"
        elif (table.dtype, table.shape) != (dtype, made.shape):
            yield f"{made.name}: the table is {table.dtype} {table.shape}, should be {dtype} {made.shape}"


def find_refusals(expected: ExpectedCheckpoint, folded: Source) -> list[str]:
    """Return why a folded checkpoint must not even be loaded: differences in config, code, files or table.

    The contents of tensors are checked later: they are data.
    """
    return [
        *folded.notes,
        *_config_problems(expected, folded),
        *_code_problems(expected, folded),
        *_file_problems(expected, folded),
        *_table_problems(expected, folded),
    ]


def _same_bytes(one: Outgoing, other: Entry) -> bool:
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    if one.entry and one.entry.file.samefile(other.file) and one.entry == replace(other, file=one.entry.file):
        return True  # a link: both are one file
    with other.file.open("rb") as file:
        file.seek(other.start)
        return all(file.read(len(piece)) == bytes(piece) for piece in one.chunks())


def _is_untouched(source: Entry, folded: Entry, dtype: torch.dtype, *, is_kept: bool) -> bool:
    """Return whether a tensor is the source's, or, unless it is kept, the source's in the model's type."""
    if is_kept or source.dtype == folded.dtype:
        return _same_bytes(passed_through(source), folded)
    return _same_bytes(cast(source, dtype), folded)


def _tensor_problems(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    kept, made, known = expected.untouched, [made.name for made in expected.made.values()], expected.known
    for name, entry in kept.items():
        is_kept = known.live.get(name) in known.study.float32
        if name not in folded.entries:
            yield f"{name}: missing"
        elif not _is_untouched(entry, folded.entries[name], known.dtype, is_kept=is_kept):
            yield f"{name}: not the source's bytes"
    for name in sorted(folded.entries.keys() - kept.keys() - set(made)):
        yield f"{name}: unexpected"
    for name in made:
        if sha256(folded.entries[name].chunks()) != _dict(folded, "tensor_sha256").get(name):
            yield f"{name}: not the table that was written (its hash differs)"


def _missing(expected: ExpectedCheckpoint, folded: Source) -> Iterator[str]:
    for name in [*expected.known.side.copied, *expected.known.side.edited, *expected.adapter]:
        if not (folded.folder / name).is_file():
            yield f"{name}: missing"


def find_differences(expected: ExpectedCheckpoint, folded: Source) -> list[str]:
    """Return differences of tensors from the source's and of the table from the written one, and missing files."""
    return [*_tensor_problems(expected, folded), *_missing(expected, folded)]


def _key_problems(loading: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    for kind in ("missing", "unexpected", "mismatched"):
        idle = before["unexpected_keys"] if kind == "unexpected" else []
        for name in loading[f"{kind}_keys"]:
            if name not in idle:
                yield f"{name}: {kind} when transformers loads it"
    if not loading["module"].startswith("transformers_modules."):
        yield f"{loading['module']}.{loading['class']}: loaded in place of the module in the checkpoint's folder"


def check_structure(
    expected: ExpectedCheckpoint, differences: list[str], loading: dict[str, Any], before: dict[str, Any]
) -> Outcome:
    """Judge the differences of files, and the keys that transformers missed or did not expect.

    ``before`` is the source's loading: keys that it does not use, as heads of another task, pass through.
    """
    problems = [*differences, *_key_problems(loading, before)]
    untouched, copied = len(expected.untouched), len(expected.known.side.copied)
    summary = f"{untouched} untouched tensors and {copied} side files equal the source's, no key missing or unexpected"
    figures = {"untouched_tensors": untouched, "side_files": copied, "loaded_as": loading["class"]}
    return Outcome(not problems, problem_count(problems) if problems else summary, figures, problems)


def problem_count(problems: list[str]) -> str:
    """Return the number of problems in words."""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
