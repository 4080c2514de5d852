"""A checkpoint to be read: its folder, its config, its tensors."""

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from prefold.common.errors import UsageError
from prefold.convert.checkpoint import hub
from prefold.convert.checkpoint.files import (
    ADAPTER,
    CONFIG,
    INDEX,
    MODULES,
    SINGLE,
    all_files,
    is_hidden,
    is_side_file,
    is_weights,
    own_file,
    require_fetched,
)
from prefold.convert.checkpoint.safetensors_file import Entry, read_header
from prefold.convert.errors import BrokenCheckpoint, UnsupportedModel

# What safetensors allows for a header, which holds as much as an index.
_LARGEST_JSON = 100_000_000


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read.

    Attributes:
        config_path: the path that transformers reads: the folder, or a bare ``config.json``.
        name: as the user gave it: a path or a hub id.
        revision: the commit, for a checkpoint of the hub.
        entries: every tensor by name; empty before ``add_weights``.
        hub_files: the names of all files of the commit.
        notes: differences between index and shards, and what transformers loads there.
    """

    config_path: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)
    hub_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.config_path if self.config_path.is_dir() else self.config_path.parent

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())

    @cached_property
    def module_folders(self) -> list[str]:
        """The folders of sentence-transformers' modules, as its own file names them.

        Raises:
            BrokenCheckpoint: it is not of that form, or names a folder out of the checkpoint.
        """
        if not self.config_path.is_dir() or not (self.folder / MODULES).exists():
            return []
        modules = read_json(own_file(self.folder, MODULES), list)
        try:
            folders = [PurePosixPath(module.get("path", "")).as_posix() for module in modules]
        except (AttributeError, TypeError) as error:
            raise BrokenCheckpoint(f"{MODULES}: names no folder for each module") from error
        for folder in folders:
            _require_inside(MODULES, folder)
        return [folder for folder in folders if folder != "."]

    @property
    def names(self) -> list[str]:
        """The names of all its files; none where it is a bare ``config.json``."""
        return self.hub_files or (list(all_files(self.folder)) if self.config_path.is_dir() else [])

    def data_names(self) -> list[str]:
        """Name the side files that lie in its folder."""
        names = all_files(self.folder) if self.config_path.is_dir() else ()
        return [name for name in names if is_side_file(name, self.module_folders)]


def _is_local(model: str) -> bool:
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    return looks_like_path or Path(model).exists()


def open_config(model: str, revision: str | None = None) -> Source:
    """Open a checkpoint's config alone: a folder, a ``config.json`` or a hub id; weights are not read.

    Raises:
        UsageError: there is no such thing, it is not a checkpoint, or a folder's ``revision`` is asked for.
        UnsupportedModel: it cannot be folded, by its files.
        HubError: the hub did not answer.
    """
    if not _is_local(model):
        return _open_remote(model, revision)
    if revision is not None:
        raise UsageError(f"{model}: a folder or file here has no --revision; hub ids have")
    path = Path(model).expanduser()
    if path.is_dir():
        return _open_bare(path, model)
    if not path.exists():
        raise UsageError(f"{model}: no such file or folder")
    if is_weights(path.name):
        raise UsageError(f"{model}: a file of weights: a checkpoint is a folder with config.json and safetensors files")
    try:
        return Source(path, model, None, read_json(path))
    except BrokenCheckpoint as error:
        raise UsageError(f"{model}: no config.json of a model: {error}") from error


def _open_remote(model: str, revision: str | None) -> Source:
    commit, names = hub.resolve(model, revision)
    _refuse_files(model, set(names))
    path = hub.fetch_file(model, commit, CONFIG)
    opened = Source(path.parent, model, commit, read_json(path), hub_files=names)
    # Both may name code, which is read to understand them.
    code = [name for name in names if name.endswith(".py")] if "auto_map" in opened.config else []
    needed = [*code, *(name for name in names if name == MODULES)]
    if needed:
        hub.fetch_files(model, commit, needed)
    return opened


def _open_bare(folder: Path, name: str) -> Source:
    if not folder.is_dir():
        raise UsageError(f"{name}: no such folder")
    if not _is_utf8(str(folder)):
        raise UsageError(f"{name}: a name that is not UTF-8: safetensors opens no file there")
    names = {path.name for path in folder.iterdir()}
    _refuse_files(name, names)
    return Source(folder, name, None, read_json(own_file(folder, CONFIG)))


def _is_utf8(path: str) -> bool:
    return path.encode(errors="replace") == path.encode(errors="surrogateescape")


def open_source(model: str, revision: str | None = None) -> Source:
    """Open a checkpoint with its weights, fetching it if it is on the hub, and check that its files agree.

    Raises:
        UsageError: there is no such thing, or it is not a checkpoint.
        UnsupportedModel: it cannot be folded, by its files.
        BrokenCheckpoint: index and shards disagree, or a shard is not whole.
        HubError: the hub did not answer.
    """
    return add_weights(open_config(model, revision))


def add_weights(opened: Source) -> Source:
    """Return an opened checkpoint with its weights, fetched if it is on the hub; errors are those of ``open_source``.

    Apart from ``open_config``, so that a model which does not fold is refused before its weights are downloaded.
    """
    if not opened.config_path.is_dir():
        raise UsageError(f"{opened.name}: not a folder: there are no weights to read")
    if opened.revision is not None:
        _fetch_weights(opened, opened.revision)
    entries, notes = read_entries(opened.folder)
    return replace(opened, entries=entries, notes=notes)


def _fetch_weights(opened: Source, commit: str) -> None:
    """Download one set of safetensors weights, and all side files."""
    weights = [name for name in (SINGLE,) if name in opened.hub_files]
    if not weights and INDEX in opened.hub_files:
        weights = sorted(set(_weight_map(hub.fetch_file(opened.name, commit, INDEX)).values()))
    for name in sorted(set(weights) - set(opened.hub_files)):
        raise BrokenCheckpoint(f"{INDEX}: names {name}, which is missing")
    side = [name for name in opened.hub_files if is_side_file(name, opened.module_folders)]
    hub.fetch_files(opened.name, commit, weights + side)


def open_folder(folder: Path, name: str | None = None, revision: str | None = None) -> Source:
    """Open a local checkpoint with its weights; errors are those of ``open_source``."""
    opened = _open_bare(folder, name or str(folder))
    entries, notes = read_entries(folder)
    return replace(opened, revision=revision, entries=entries, notes=notes)


def read_json(path: Path, form: type[Any] = dict) -> Any:
    """Read a JSON file whose outermost value is of the type ``form``.

    Raises:
        BrokenCheckpoint: it is not JSON, of another form, or larger than a checkpoint's headers may be.
    """
    require_fetched(path)
    try:
        decoded = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{path.name}: not JSON: {error}") from error
    if not isinstance(decoded, form):
        raise BrokenCheckpoint(f"{path.name}: not a JSON {'object' if form is dict else form.__name__}")
    return decoded


def read_text(path: Path) -> str:
    """Read a text file, no larger than a checkpoint's headers may be.

    Raises:
        BrokenCheckpoint: it is larger.
        UnicodeDecodeError: it is no text.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise BrokenCheckpoint(f"{path.name}: larger than {_LARGEST_JSON:,} bytes")
    return content.decode()


def _refuse_files(model: str, names: set[str]) -> None:
    """Refuse a checkpoint for the names of its files."""
    if CONFIG not in names:
        if ADAPTER in names:
            raise UnsupportedModel([f"{model}: an adapter alone: merge it into its base model and fold that"])
        raise UsageError(f"{model}: not a checkpoint: it has no {CONFIG}")
    if ADAPTER in names:
        raise UnsupportedModel(
            [f"{model}: {ADAPTER} lies beside its weights: take the adapter out of the folder and pass it as --adapter"]
        )
    weights = sorted(name for name in names if is_weights(name))
    if not weights or SINGLE in names or INDEX in names:
        return
    shards = [name for name in weights if name.endswith(".safetensors")]
    if shards:
        raise UnsupportedModel(
            [f"{model}: neither {SINGLE} nor {INDEX}, which says what lies in {', '.join(shards[:3])}: fetch it, too"]
        )
    raise UnsupportedModel(
        [
            f"{model}: no safetensors weights, only {', '.join(weights[:3])}: such files may run code when they are"
            " opened; load the model in transformers once and call save_pretrained"
        ]
    )


def read_entries(folder: Path) -> tuple[dict[str, Entry], list[str]]:
    """Read the headers of all files that transformers loads; returns the tensors by name, and notes on the index.

    Of an index only the names of files count: every tensor of a file is loaded, from the last of several.

    Raises:
        BrokenCheckpoint: a shard is missing or cut short, or the index points out of the folder.
        UnsupportedModel: there are no weights.
    """
    if os.path.lexists(folder / SINGLE):
        return read_header(own_file(folder, SINGLE)), []
    if not os.path.lexists(folder / INDEX):
        raise UnsupportedModel([f"{folder}: no weights: neither {SINGLE} nor {INDEX}"])
    weight_map, entries, notes = _weight_map(own_file(folder, INDEX)), dict[str, Entry](), list[str]()
    for shard in sorted(set(weight_map.values())):
        found = _read_shard(folder, shard)
        notes += [
            f"{shard}: {name} lies in an earlier shard, too: this one counts" for name in found if name in entries
        ]
        entries |= found
    notes += [f"{INDEX}: names {name}, which no shard holds" for name in weight_map if name not in entries]
    notes += [
        f"{entry.file.name}: {name} is not in the index" for name, entry in entries.items() if name not in weight_map
    ]
    return entries, notes


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise BrokenCheckpoint(f"{INDEX}: has no weight_map that names a file for each tensor")
    return weight_map


def _read_shard(folder: Path, shard: str) -> dict[str, Entry]:
    _require_inside(INDEX, shard)
    if not shard.endswith(".safetensors") or is_hidden(shard):
        raise BrokenCheckpoint(
            f"{INDEX}: {shard!r} is no safetensors file: others may be unpickled when they are loaded"
        )
    if not os.path.lexists(folder / shard):
        raise BrokenCheckpoint(f"{INDEX}: names {shard}, which is missing")
    return read_header(own_file(folder, shard))


def _require_inside(file: str, name: str) -> None:
    """Refuse a name, in a file of the checkpoint, that leads out of the checkpoint."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BrokenCheckpoint(f"{file}: {name!r} lies outside the checkpoint")
