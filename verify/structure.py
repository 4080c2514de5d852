"""Whether the files of a folded checkpoint are what they say, and what the source's were."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefold.convert.cut import Cut
from prefold.convert.files import RUNTIME, TABLE, copied_name, side_files
from prefold.convert.shards import Entry, Outgoing, cast, passed_through, DTYPES
from prefold.convert.source import Source
from prefold.verify.checks import Outcome


def sha256(pieces: Iterable[bytes]) -> str:
    """Return the hash of bytes that come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _same_bytes(one: Outgoing, other: Entry) -> bool:
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    return sha256(one.chunks()) == sha256(other.chunks())


def _as_kept(entry: Entry, dtype: str) -> Outgoing:
    """Return a source tensor as the folded checkpoint should have it: cast only if another dtype was asked for."""
    return cast(entry, DTYPES[dtype]) if entry.is_floating_point and entry.dtype != dtype else passed_through(entry)


def _is_untouched(source: Entry, folded: Entry) -> bool:
    return _same_bytes(passed_through(source), folded) or (
        source.dtype != folded.dtype and folded.dtype in DTYPES and _same_bytes(_as_kept(source, folded.dtype), folded)
    )


def _tensor_problems(source: Source, folded: Source, live: dict[str, str], cut: Cut, head: str | None) -> Iterator[str]:
    table_name = next(name for name, parameter in live.items() if parameter == f"{cut.embedding}.weight")
    gone = {name for name in source.entries if any(live[name].startswith(f"{m}.") for m in cut.eliminated)}
    expected = {name: entry for name, entry in source.entries.items() if name not in gone}
    if head and head not in live.values():
        expected[head] = source.entries[table_name]
    for name, entry in expected.items():
        if name not in folded.entries:
            yield f"{name}: missing"
        elif not _is_untouched(entry, folded.entries[name]):
            yield f"{name}: not the source's bytes"
    for name in folded.entries.keys() - expected.keys() - {table_name}:
        yield f"{name}: unexpected"
    if table_name not in folded.entries:
        yield f"{table_name}: the table is missing"
    elif folded.entries[table_name].shape != [cut.rows, cut.row_width]:
        yield f"{table_name}: the table has shape {folded.entries[table_name].shape}"


def _hash_problems(folded: Source, section: dict[str, Any]) -> Iterator[str]:
    for name, entry in folded.entries.items():
        if entry.file.name == TABLE and sha256(entry.chunks()) != section["table_sha256"]:
            yield f"{name}: not the table that was written (its hash differs)"
    if sha256([(folded.folder / RUNTIME).read_bytes()]) != section["runtime_sha256"]:
        yield f"{RUNTIME}: not the file that was written (its hash differs)"


def _side_file_problems(source: Path, folded: Path) -> Iterator[str]:
    for name in side_files(source):
        copy = folded / copied_name(name)
        if not copy.exists():
            yield f"{name}: missing"
        elif copy.read_bytes() != (source / name).read_bytes():
            yield f"{name}: not the source's bytes"


def _key_problems(loading: dict[str, Any]) -> Iterator[str]:
    for kind in ("missing", "unexpected", "mismatched"):
        for name in loading[f"{kind}_keys"]:
            yield f"{name}: {kind} when transformers loads it"


def check_structure(
    source: Source, folded: Source, live: dict[str, str], cut: Cut, head: str | None, loading: dict[str, Any]
) -> Outcome:
    """Check tensors, hashes, side files and the keys that transformers saw, against the source."""
    problems = [
        *_tensor_problems(source, folded, live, cut, head),
        *_hash_problems(folded, folded.config["prefold"]),
        *_side_file_problems(source.folder, folded.folder),
        *_key_problems(loading),
    ]
    untouched = len(folded.entries) - 1
    copied = len(side_files(source.folder))
    summary = f"{untouched} untouched tensors and {copied} side files equal the source's, no key missing or unexpected"
    figures = {"untouched_tensors": untouched, "side_files": copied, "loaded_as": loading["class"]}
    return Outcome(not problems, summary if not problems else f"{len(problems)} problems", figures, problems)
