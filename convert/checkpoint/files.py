"""The role of each file of a checkpoint, by its name."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from prefold.convert.errors import BrokenCheckpoint

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MODULES = "modules.json"  # of sentence-transformers
TABLE = "prefold_table.safetensors"
RUNTIME = "modeling_prefold.py"
RUNTIMES = (RUNTIME, "columns_prefold.py", "ranks_prefold.py", "storage_prefold.py", "sums_prefold.py")
REMOTE_RUNTIME = "modeling_prefold_source.py"
CARD = "README.md"
SOURCE_CARD = "README.source.md"
REPORT = "prefold.json"
ADAPTER_FOLDER = "adapter"
TEMPLATES = "additional_chat_templates"

# What tokenizers, processors, chat templates and generation configs are kept in, and documents.
_DATA = {".json", ".txt", ".model", ".spm", ".tiktoken", ".codes", ".tokenizer", ".bpe", ".vocab", ".jinja", ".md"}
_DOCUMENT = re.compile(r"(licen[sc]e|notice|copying|readme)([-_ ][\w -]*)?(\.(txt|md|rst|pdf|html))?", re.IGNORECASE)
_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot",
    ".tflite", ".mlmodel", ".npz", ".npy", ".pkl", ".nemo",
}  # fmt: skip
_POINTER = b"version https://git-lfs.github.com/spec/"
# Names under which a folded checkpoint has files of its own, or which would change how it is loaded.
_OWN = {CONFIG, ADAPTER, REPORT, SOURCE_CARD}


def is_weights(name: str) -> bool:
    """Return whether a file holds weights, in whatever format, or is an index of such files."""
    stem = name.removesuffix(".index.json")
    external = ".onnx" in PurePosixPath(name).name  # model.onnx.data, model.onnx_data_1
    return PurePosixPath(stem).suffix in _WEIGHTS or external


def is_adapter(name: str) -> bool:
    """Return whether a file is the config of an adapter, wherever it lies."""
    return PurePosixPath(name).name == ADAPTER


def is_hidden(name: str) -> bool:
    """Return whether a file, or a folder that it lies in, is hidden or Python's cache."""
    return any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)


def is_side_file(name: str, modules: Collection[str] = ()) -> bool:
    """Return whether a file goes along with the weights: data of a kind that programs read beside them, never code.

    ``modules`` are the folders of sentence-transformers' modules, whose weights go along, too.
    """
    path = PurePosixPath(name)
    if is_hidden(name) or name in _OWN or is_adapter(name):
        return False
    if any(path.is_relative_to(folder) for folder in modules):
        return path.suffix in _DATA | {".safetensors"}
    if path.parent == PurePosixPath(TEMPLATES):
        return path.suffix == ".jinja"
    is_data = path.suffix in _DATA and not is_weights(name)
    return len(path.parts) == 1 and (is_data or _DOCUMENT.fullmatch(name) is not None)


def copied_name(name: str) -> str:
    """Return the name of a side file in the folded checkpoint."""
    return SOURCE_CARD if name == CARD else name


def all_files(folder: Path) -> Iterator[str]:
    """Yield the names of everything in a checkpoint that is no folder, relative to it; no link is followed."""
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in sorted([*files, *links]):
            yield (Path(where) / name).relative_to(folder).as_posix()


def own_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a checkpoint has.

    A link may lead to another file of the checkpoint, or into the hub's cache that the checkpoint is a part of.

    Raises:
        BrokenCheckpoint: it is missing, no file, or a link that leads out of the checkpoint.
    """
    path, root = folder / name, folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BrokenCheckpoint(f"{name}: is missing, or a link that leads nowhere") from error
    if not any(target.is_relative_to(home) for home in homes):
        raise BrokenCheckpoint(f"{name}: a link that leads out of the checkpoint: put the file itself there")
    if not target.is_file():
        raise BrokenCheckpoint(f"{name}: no regular file")
    return path


def require_fetched(path: Path) -> None:
    """Refuse the pointer that Git LFS leaves in the place of a file that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise BrokenCheckpoint(f"{path.name}: a Git-LFS pointer in place of the file: run git lfs pull")
