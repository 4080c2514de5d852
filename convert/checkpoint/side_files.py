"""Files that go along with the weights of a source: its side files, and its code where that is trusted."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from prefold.convert.checkpoint.copying import copy_file
from prefold.convert.checkpoint.files import (
    ADAPTER_FOLDER,
    CONFIG,
    INDEX,
    MODULES,
    REMOTE_RUNTIME,
    RUNTIMES,
    SINGLE,
    copied_name,
    is_adapter,
    is_hidden,
    is_side_file,
    own_file,
)
from prefold.convert.checkpoint.source import Source, read_text
from prefold.convert.errors import BrokenCheckpoint, UnsupportedModel

# By these keys sentence-transformers' files name classes, and by this one a tokenizer that lies elsewhere.
_CLASS_KEYS = ("type", "types", "activation_function", "activation_fn", "tokenizer_class")
_ELSEWHERE = "tokenizer_name_or_path"
# By these, configs name code; pipelines of its own never go along.
_CODE = ("auto_map", "custom_pipelines")
# By these they have transformers read other files than those of the names that everybody knows.
_INSTEAD = ("configuration_files", "transformers_weights", "adapter_kwargs")
# Its own classes, and torch's activations, are installed with it.
_DOTTED = re.compile(r"\.|/|--")
_INSTALLED = re.compile(r"(sentence_transformers|torch\.nn)(\.\w+)*\.[A-Z]\w*")


@dataclass(frozen=True)
class SideFiles:
    """The files of a source that go along with its weights, by their names in the folded checkpoint.

    Attributes:
        edited: without the names of code that does not go along.
        left_out: other files of the source, folders as ``name/``.
    """

    copied: dict[str, Path]
    edited: dict[str, bytes]
    code: dict[str, bytes]
    left_out: list[str]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        written = [*self.edited.values(), *self.code.values()]
        return sum(path.stat().st_size for path in self.copied.values()) + sum(map(len, written))

    def write(self, folder: Path) -> None:
        """Write all of them into a folder."""
        for name in [*self.copied, *self.edited, *self.code]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name, path in self.copied.items():
            copy_file(path, folder / name)
        for name, content in (self.edited | self.code).items():
            (folder / name).write_bytes(content)


def find_side_files(source: Source, *, trust_remote_code: bool = False) -> SideFiles:
    """Find the files that go along with a source's weights.

    Raises:
        BrokenCheckpoint: a file is a link that leads out of the checkpoint, or code that is named is missing.
        UnsupportedModel: a name that the source gives to its code or modules is prefold's own.
    """
    folder = source.folder
    if any(PurePosixPath(name).is_relative_to(ADAPTER_FOLDER) for name in source.module_folders):
        raise UnsupportedModel([f"{MODULES} names a folder {ADAPTER_FOLDER}, which prefold writes itself: rename it"])
    kept = [name for name in source.names if is_side_file(name, source.module_folders)]
    paths = {name: own_file(folder, name) for name in kept}
    edited = {} if trust_remote_code else dict(_without_code(paths))
    code = _code(source) if trust_remote_code else {}
    copied = {copied_name(name): path for name, path in paths.items() if name not in edited}
    return SideFiles(copied, edited, code, _left_out(source, {CONFIG, SINGLE, INDEX, *kept, *code}))


def _left_out(source: Source, read: set[str]) -> list[str]:
    read = read | {entry.file.relative_to(source.folder).as_posix() for entry in source.entries.values()}
    return sorted({_shown(name, source) for name in source.names if name not in read and not is_hidden(name)})


def _shown(name: str, source: Source) -> str:
    """Return a file's name, or that of its folder where no file of the folder is read."""
    top, _, inside = name.partition("/")
    return f"{top}/" if inside and top not in source.module_folders else name


def _without_code(paths: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield files that name code, as of a tokenizer, without those names: stock then takes a class of its own."""
    for name, path in paths.items():
        if name.endswith(".json") and any(key in _CODE for key, _ in _notable(path)):
            yield name, (json.dumps(plain(_decoded(path)), indent=2, ensure_ascii=False) + "\n").encode()


def plain(decoded: Any, keys: Collection[str] = _CODE) -> Any:
    """Return decoded JSON without ``keys``, wherever they stand in it."""
    if isinstance(decoded, dict):
        return {key: plain(value, keys) for key, value in decoded.items() if key not in keys}
    return [plain(part, keys) for part in decoded] if isinstance(decoded, list) else decoded


def code_reasons(source: Source, *, trust_remote_code: bool) -> list[str]:
    """Return why a source's code keeps it from being folded: it is not trusted, or no part of the checkpoint."""
    reasons, classes = list(_led_elsewhere(source)), list(_module_classes(source))
    parts = [part for key, part in source.config.items() if key != "auto_map"]
    inside = [name for key, value in _items(parts) if key in _CODE for name in strings(value)]
    if trust_remote_code:
        named = dict.fromkeys([*classes, *inside, *_auto_classes(source)])
        elsewhere = "its code is part of another repository, {}: save the model with it, by save_pretrained"
        return reasons + [elsewhere.format(name) for name in named if "--" in name or "/" in name]
    read = "read that, then pass --trust-remote-code"
    reasons += [f"{MODULES} names code of its own, {name}: {read} to run it" for name in classes[:1]]
    return reasons + [f"a part of its config.json names code, {name}: {read}" for name in inside[:1]]


def _led_elsewhere(source: Source) -> Iterator[str]:
    """Yield why transformers would read or run other files than those looked at here, trusted or not."""
    for name in source.names if source.module_folders else ():
        if any(PurePosixPath(name).is_relative_to(folder) for folder in source.module_folders) and is_adapter(name):
            yield f"{name}: an adapter among the modules, which may name another model: merge it, by save_pretrained"
    for key, value in [*_items(source.config), *_beside(source)]:
        if key in _INSTEAD:
            yield f"its configs name other files by {key}, which would be read in their place: leave those alone"
        if "_implementation" in key and any("/" in name for name in strings(value)):
            yield f"its configs name code of another repository as {key}: take that out"


def _beside(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the keys that may name code in the JSON files beside a config, with their values."""
    for name in source.data_names():
        if name.endswith(".json"):
            yield from _notable(own_file(source.folder, name))


def _notable(path: Path) -> list[tuple[str, Any]]:
    """Return the keys of a JSON file that may name code, wherever they stand in it, with their values."""
    return _notable_once(path, path.stat().st_mtime_ns)


@lru_cache
def _notable_once(path: Path, _changed: int) -> list[tuple[str, Any]]:
    """Read a file once, and keep little of it: a tokenizer takes a second, and each question asks all files."""
    keys = {*_CODE, *_INSTEAD, *_CLASS_KEYS, _ELSEWHERE}
    return [(key, value) for key, value in _items(_decoded(path)) if key in keys or "_implementation" in key]


def _items(decoded: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of decoded JSON, wherever it stands, with its value."""
    if isinstance(decoded, dict):
        yield from decoded.items()
    parts = decoded.values() if isinstance(decoded, dict) else decoded if isinstance(decoded, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            yield from _items(part)


def _auto_classes(source: Source) -> Iterator[str]:
    """Yield the classes that the config, and the files beside it, name as code: ``module.Class``."""
    for key, value in [*_items(source.config), *_beside(source)]:
        if key == "auto_map":
            yield from strings(value)


def _decoded(path: Path) -> Any:
    """Return a file's JSON; None where it holds none."""
    try:
        return json.loads(read_text(path))
    except ValueError:
        return None
    except RecursionError as error:
        raise BrokenCheckpoint(f"{path.name}: nests too deep") from error


def _module_classes(source: Source) -> Iterator[str]:
    """Yield the classes that sentence-transformers' files name and that are not installed with it."""
    for key, value in _beside(source) if MODULES in source.data_names() else ():
        if key in _CLASS_KEYS:
            # A class of transformers has no module before it, and kinds of tokenizers or of positions none, either.
            yield from (name for name in strings(value) if _DOTTED.search(name) and not _INSTALLED.fullmatch(name))
        elif key == _ELSEWHERE and isinstance(value, str) and value:
            yield value


def strings(value: Any) -> Iterator[str]:
    """Yield every string in decoded JSON."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(part)


def _code(source: Source) -> dict[str, bytes]:
    """Return the modules that the names of classes reach, by file."""
    folder, found = source.folder, dict[str, bytes]()
    named = [module_of(name) for name in _auto_classes(source)]
    own = [module_of(name) for name in _module_classes(source)]
    named += [module for module in own if (folder / module).exists()]  # else a package that is installed
    for module in dict.fromkeys(named):
        found[module] = own_file(folder, module).read_bytes()
        for file in _imported(folder, module):
            found[file] = own_file(folder, file).read_bytes()
    for taken in sorted(found.keys() & {*RUNTIMES, REMOTE_RUNTIME}):
        raise UnsupportedModel([f"its module {taken} has the name of one that prefold writes: rename it"])
    return found


def module_of(name: str) -> str:
    """Return the file of a class that is named as code: ``module.Class``."""
    return name.rpartition(".")[0].replace(".", "/") + ".py"


def _imported(folder: Path, module: str) -> list[str]:
    try:
        return sorted(Path(file).relative_to(folder).as_posix() for file in get_relative_import_files(folder / module))
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(f"{module}: imports what the checkpoint does not have: {error}") from error
