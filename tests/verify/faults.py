"""Ways to break a folded checkpoint on disk. Each takes its folder; what alters the table may hide it from the hash."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefold.convert.checkpoint.files import CONFIG, INDEX, RUNTIME, TABLE
from prefold.convert.checkpoint.safetensors_file import read_header
from prefold.convert.fold.layout import Column, Cut, read_cuts
from prefold.convert.fold.table import table_rows
from prefold.verify.structure import sha256
from tests.conftest import load

SHARD = "model-00001-of-00001.safetensors"


@contextmanager
def edited_json(file: Path) -> Iterator[dict[str, Any]]:
    """Yield a decoded JSON file and write back what becomes of it."""
    decoded = json.loads(file.read_text())
    yield decoded
    file.write_text(json.dumps(decoded, indent=2))


@contextmanager
def edited_tensors(file: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield all tensors of a file by name and write back what becomes of them."""
    tensors = load_file(file)
    yield tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


def folded_cut(folded: Path) -> Cut:
    """Return the cut of a fold with one side."""
    (cut,) = read_cuts(json.loads((folded / CONFIG).read_text()))
    return cut


def hide(folded: Path) -> None:
    """Write the hashes of what was computed, as it is now, so that only its rows can give the fault away."""
    hashes = {name: sha256(entry.chunks()) for name, entry in read_header(folded / TABLE).items()}
    with edited_json(folded / CONFIG) as config:
        assert config["prefold"]["tensor_sha256"].keys() == hashes.keys()
        config["prefold"]["tensor_sha256"] = hashes


@contextmanager
def edited_table(folded: Path) -> Iterator[torch.Tensor]:
    """Yield the table, ``[rows, row_width]``, to be changed in place."""
    with edited_tensors(folded / TABLE) as tensors:
        yield tensors[f"{folded_cut(folded).embedding}.weight"]


def _slice(column: Column) -> slice:
    return slice(column.start, column.start + column.width)


def forget_norm_gain(source: Path, folded: Path) -> None:
    """Compute the table again as if the first norm had no gain."""
    model, cut = load(source), folded_cut(folded)
    norm = next(column.module for column in cut.dropped if "norm" in column.module)
    model.get_submodule(norm).weight.data.fill_(1)
    with edited_table(folded) as table:
        table.copy_(torch.cat(list(table_rows(model, cut, 64))))


def swap_columns(_: Path, folded: Path) -> None:
    """Exchange the last two slices of equal width."""
    cut = folded_cut(folded)
    every = [cut.residual, *cut.columns]
    one, other = next((a, b) for b in reversed(every) for a in reversed(every) if a is not b and a.width == b.width)
    with edited_table(folded) as table:
        kept = table[:, _slice(one)].clone()
        table[:, _slice(one)] = table[:, _slice(other)]
        table[:, _slice(other)] = kept


def _roll(folded: Path, along: int) -> None:
    column = next(column for column in folded_cut(folded).columns if "k_proj" in column.module)
    with edited_table(folded) as table:
        table[:, _slice(column)] = table[:, _slice(column)].roll(1, along)


def roll_keys_to_next_token(_: Path, folded: Path) -> None:
    """Give every token the key of the token before it."""
    _roll(folded, 0)


def roll_keys_along_width(_: Path, folded: Path) -> None:
    """Shift every token's key by one value."""
    _roll(folded, 1)


def spoil_row(folded: Path, token: int, value: float | None = None) -> None:
    """Make one value of one token's row a little larger, or ``value``."""
    with edited_table(folded) as table:
        table[token, -1] = table[token, -1] * 1.01 if value is None else value


def flip_bit(folded: Path, name: str) -> None:
    """Flip the least significant bit of a tensor's first value."""
    entry = read_header(folded / SHARD)[name]
    with (folded / SHARD).open("r+b") as file:
        file.seek(entry.start)
        (byte,) = file.read(1)
        file.seek(entry.start)
        file.write(bytes([byte ^ 1]))


def widen_tensor(folded: Path, name: str) -> None:
    """Store a tensor in a wider type: the model says the same, but the tensor is not the source's."""
    with edited_tensors(folded / SHARD) as tensors:
        tensors[name] = tensors[name].double()


def cut_short(file: Path) -> None:
    """Take the last byte off a file."""
    file.write_bytes(file.read_bytes()[:-1])


def name_absent_tensor(folded: Path) -> None:
    """Let the index name a tensor that no shard has."""
    with edited_json(folded / INDEX) as index:
        index["weight_map"]["model.absent.weight"] = SHARD


def forget_tensor(folded: Path, name: str) -> None:
    """Take a tensor out of the index that its shard has."""
    with edited_json(folded / INDEX) as index:
        del index["weight_map"][name]


def drop_tensor(folded: Path, name: str) -> None:
    """Take a tensor out of the index and out of its shard."""
    forget_tensor(folded, name)
    with edited_tensors(folded / SHARD) as tensors:
        del tensors[name]


def add_tensor(folded: Path, name: str) -> None:
    """Put a tensor into a shard and into the index that the source does not have."""
    with edited_tensors(folded / SHARD) as tensors:
        tensors[name] = torch.zeros(3)
    with edited_json(folded / INDEX) as index:
        index["weight_map"][name] = SHARD


def narrow_table(folded: Path) -> None:
    """Take the last row off the table and off the file's header alike."""
    with edited_tensors(folded / TABLE) as tensors:
        for name in tensors:
            tensors[name] = tensors[name][:-1]


def retype_table(folded: Path) -> None:
    """Store the table in a wider type than the config says."""
    with edited_tensors(folded / TABLE) as tensors:
        for name in tensors:
            tensors[name] = tensors[name].double()


def edit_runtime(folded: Path, *, hidden: bool = False) -> None:
    """Change the module that runs the checkpoint; ``hidden``: and its hash in the config."""
    module = folded / RUNTIME
    module.write_text(module.read_text() + "\n# changed\n")
    if hidden:
        with edited_json(folded / CONFIG) as config:
            config["prefold"]["runtime_sha256"][RUNTIME] = hashlib.sha256(module.read_bytes()).hexdigest()


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a fault that changes ``config.json``."""

    def fault(folded: Path) -> None:
        with edited_json(folded / CONFIG) as config:
            change(config)

    return fault
