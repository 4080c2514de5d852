"""Which file of a checkpoint is what."""

from pathlib import Path, PurePosixPath

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TABLE = "prefold_table.safetensors"
RUNTIME = "modeling_prefold.py"
RUNTIMES = (RUNTIME, "columns_prefold.py", "ranks_prefold.py", "storage_prefold.py")
REMOTE_RUNTIME = "modeling_prefold_source.py"
CARD = "README.md"
SOURCE_CARD = "README.source.md"
REPORT = "prefold.json"
ADAPTER_FOLDER = "adapter"

_WEIGHT_SUFFIXES = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot",
    ".tflite", ".mlmodel", ".npz", ".npy", ".pkl", ".nemo",
}  # fmt: skip


def is_weights(name: str) -> bool:
    """Say whether a file holds weights, in whatever format, or is an index of such files."""
    stem = name.removesuffix(".index.json")
    external = ".onnx" in PurePosixPath(name).name  # model.onnx.data, model.onnx_data_1
    return PurePosixPath(stem).suffix in _WEIGHT_SUFFIXES or external


def is_side_file(name: str) -> bool:
    """Say whether a file goes along verbatim: neither weights, nor hidden, nor the config."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)
    return not hidden and not is_weights(name) and name != CONFIG


def side_files(folder: Path) -> list[Path]:
    """List, relative to ``folder``, every file that goes along verbatim."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if is_side_file(name.as_posix())]


def copied_name(name: Path) -> Path:
    """Return under which name a side file of the source lies in the folded checkpoint."""
    return Path(SOURCE_CARD) if name == Path(CARD) else name
