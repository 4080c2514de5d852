"""Files of roots: keys and values of a prompt, bound to the model that computed them, the tokens and the format."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from prefold.tree.cache.live import Live
from prefold.tree.cache.pool import LayerStore, Tensors
from prefold.tree.errors import CacheError, WrongRoot

FORMAT = "prefold root 2"
_FREE = {"_name_or_path", "transformers_version"}  # of a config, without a part in what a model computes
_COLUMNS = 1024  # of 8 bytes, in which a weight's bits are added up


def write_root(path: Path, leaf: Live, stores: Mapping[int, LayerStore], model: PreTrainedModel, ids: Any) -> None:
    """Write the keys and values of a path, ``[kv_heads, tokens, width]`` for each layer; a file appears when whole."""
    tokens = torch.as_tensor(ids).reshape(-1).tolist()
    if len(tokens) != leaf.end:
        raise CacheError(f"TreeCache.save: {len(tokens)} token ids of a root of {leaf.end} tokens")
    tensors = {
        f"{layer}.{side}": torch.cat(parts, 1).contiguous()
        for layer, store in stores.items()
        for side, parts in zip(("keys", "values"), _parts(leaf, store), strict=True)
    }
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        try:
            save_file(tensors, name, metadata=_bound(model, tokens) | {"contents": _hash_contents(tensors)})
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror or error}") from error


def _parts(leaf: Live, store: LayerStore) -> Iterator[list[torch.Tensor]]:
    pieces = [
        tuple(side[:, run.start : run.start + segment.length] for side in store.extent(run.extent))
        for segment in leaf.path()
        if (run := segment.run) is not None
    ]
    for side in (0, 1):
        yield [piece[side] for piece in pieces]


def open_root(path: Path, model: PreTrainedModel, ids: Any) -> tuple[int, dict[int, Tensors]]:
    """Return the tokens of a root and its keys and values by layer, which are mapped on a CPU and copied elsewhere.

    Raises:
        WrongRoot: The file is none, of another format, bound to another model or other tokens, or was changed.
    """
    tokens = torch.as_tensor(ids).reshape(-1).tolist()
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            metadata = file.metadata() or {}
            _require_bound(path, metadata, _bound(model, tokens))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise WrongRoot(f"{path}: no file of a root: {error}") from error
    if metadata.get("contents") != _hash_contents(found):
        raise WrongRoot(f"{path}: keys or values are not those that were saved; compute and save them again")
    layers = sorted({int(name.partition(".")[0]) for name in found})
    return len(tokens), {each: (found[f"{each}.keys"], found[f"{each}.values"]) for each in layers}


def _require_bound(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for key, what in (("format", "of another format"), ("model", "of another model"), ("tokens", "of other tokens")):
        if found.get(key) != wanted[key]:
            raise WrongRoot(f"{path}: a root {what}; compute and save it again")


def _bound(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, str]:
    ids = torch.tensor(tokens, dtype=torch.int64).numpy().astype("<i8").tobytes()
    return {"format": FORMAT, "model": hash_model(model), "tokens": hashlib.sha256(ids).hexdigest()}


def _hash_contents(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, each in sorted(tensors.items()):
        _update(found, name, each)
    return found.hexdigest()


def hash_model(model: PreTrainedModel) -> str:
    """Return a hash of a model's config, its weights and the adapters that are active."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _FREE}
    found = hashlib.sha256(json.dumps([config, _adapters(model)], sort_keys=True, default=str).encode())
    for name, each in model.state_dict().items():
        if each.is_meta:
            raise CacheError(f"{type(model).__name__}: {name} is not in memory: a root is bound to all weights")
        _update(found, name, each)
    return found.hexdigest()


def _update(found: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    """Hash a tensor by the sums of its bits by row and by column, which a GPU finds as fast as it reads."""
    found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    for part in _sums(tensor):
        found.update(part.cpu().numpy().tobytes())


def _sums(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    bits = weight.reshape(-1).view(torch.uint8)
    bits = bits.clone() if bits.storage_offset() % 8 else bits
    whole = len(bits) // (8 * _COLUMNS) * 8 * _COLUMNS
    grid = bits[:whole].view(torch.int64).view(-1, _COLUMNS)
    yield from (grid.sum(0), grid.sum(1), bits[whole:])


def _adapters(model: PreTrainedModel) -> list[tuple[str, list[str], Any]]:
    """Return the active adapters of PEFT's layers."""
    found = [(name, getattr(each, "active_adapters", None), each) for name, each in model.named_modules()]
    return [
        (name, active, getattr(each, "disable_adapters", None))
        for name, active, each in found
        if isinstance(active, list)
    ]
