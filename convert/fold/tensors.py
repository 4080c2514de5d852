"""Tensors of the folded checkpoint, and the files that hold them."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefold.convert.checkpoint.copying import copy_file, share_file
from prefold.convert.checkpoint.files import INDEX, TABLE
from prefold.convert.checkpoint.safetensors_file import (
    DTYPES,
    Entry,
    Outgoing,
    cast,
    file_of,
    file_overhead,
    passed_through,
    write_file,
)
from prefold.convert.fold.layout import Cut
from prefold.convert.model.ties import Ties
from prefold.convert.options import FoldOptions


@dataclass(frozen=True)
class ComputedTensor:
    """A tensor that is computed; an encoded one holds bytes and not the model's own values."""

    name: str
    shape: list[int]
    is_encoded: bool = False

    def dtype_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type of its values in a model of ``dtype``."""
        return torch.uint8 if self.is_encoded else dtype


@dataclass(frozen=True)
class WeightPlan:
    """The files to be written: untouched tensors by file, computed ones by the parameter that they are loaded into.

    Attributes:
        whole: those of the source's files that are shards as they are, by the shard's name.
    """

    shards: dict[str, dict[str, Outgoing]]
    whole: dict[str, Path]
    made: dict[str, ComputedTensor]

    def shard_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of some shards."""
        return sum(map(self._size, names))

    def _size(self, name: str) -> int:
        if name in self.whole:
            return self.whole[name].stat().st_size
        tensors = self.shards[name]
        return file_overhead(tensors) + sum(tensor.size for tensor in tensors.values())


def untouched(entries: dict[str, Entry], live: dict[str, str], cuts: list[Cut], ties: Ties) -> dict[str, Entry]:
    """Return the tensors that stay, under the names that they get.

    A weight that was the embedding's alone in the source, and is still needed by others, gets a name of its own; a row
    of padding that loading the source sets to zero, in what is tied to it too, is zero there.
    """
    gone = tuple(f"{module}." for cut in cuts for module in cut.eliminated)
    kept = {name: entry for name, entry in entries.items() if not live[name].startswith(gone)}
    loaded = (_as_loaded(entry, live[name], ties) for name, entry in entries.items() if live[name] in ties.shared)
    own = next(loaded, None)
    return kept | {heir: own for heir in ties.remaining_owners if own and heir not in live.values()}


def _as_loaded(entry: Entry, parameter: str, ties: Ties) -> Entry:
    return entry.with_zero_row(ties.cleared[parameter]) if parameter in ties.cleared else entry


def made_tensors(live: dict[str, str], cuts: list[Cut]) -> dict[str, ComputedTensor]:
    """Return the computed tensors by their parameters, under the names of the tensors that they replace."""
    named, made = {parameter: name for name, parameter in live.items()}, dict[str, ComputedTensor]()
    for cut in cuts:
        table, width = f"{cut.embedding}.weight", cut.encoding.row_bytes if cut.encoding else cut.row_width
        made[table] = ComputedTensor(named.get(table, table), [cut.rows, width], cut.encoding is not None)
        made |= {
            parameter: ComputedTensor(named.get(parameter, parameter), shape) for parameter, shape in cut.added.items()
        }
    return made


def plan_weights(
    entries: dict[str, Entry],
    live: dict[str, str],
    cuts: list[Cut],
    ties: Ties,
    float32: Collection[str] = (),
    options: FoldOptions = FoldOptions(),
) -> WeightPlan:
    """Keep every tensor that is not folded, in the files in which it came, as far as ``options`` do not change that.

    Parameters that transformers loads in ``float32`` keep their values, whatever type is asked for.
    """
    dtype: Any = getattr(torch, options.dtype) if options.dtype else None
    outgoing = list[tuple[Path, str, Outgoing]]()
    for name, entry in untouched(entries, live, cuts, ties).items():
        is_kept = dtype is None or live.get(name) in float32 or dtype == DTYPES.get(entry.dtype)
        outgoing.append((entry.file, name, passed_through(entry) if is_kept else cast(entry, dtype)))
    groups = list(_by_size(outgoing, options.max_shard_size) if options.max_shard_size else _by_file(outgoing))
    shards = {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}
    found = {name: file_of(group) for name, group in shards.items()}
    whole = {name: file for name, file in found.items() if file}
    return WeightPlan(shards, whole, made_tensors(live, cuts))


def _by_file(outgoing: list[tuple[Path, str, Outgoing]]) -> Iterator[dict[str, Outgoing]]:
    for file in dict.fromkeys(file for file, _, _ in outgoing):
        yield {name: tensor for where, name, tensor in outgoing if where == file}


def _by_size(outgoing: list[tuple[Path, str, Outgoing]], limit: int) -> Iterator[dict[str, Outgoing]]:
    group: dict[str, Outgoing] = {}
    for _, name, tensor in outgoing:
        if group and sum(each.size for each in group.values()) + tensor.size > limit:
            yield group
            group = {}
        group[name] = tensor
    if group:
        yield group


def share_shards(folder: Path, plan: WeightPlan, *, link: bool) -> list[str]:
    """Share those files of the source that are shards as they are, as ``share_file`` does; returns their names."""
    return [name for name, file in plan.whole.items() if share_file(file, folder / name, link=link)]


def write_shards(folder: Path, plan: WeightPlan, names: Iterable[str], written: Callable[[int], None]) -> None:
    """Write shards of untouched tensors."""
    for name in names:
        if name in plan.whole:
            copy_file(plan.whole[name], folder / name, written)
        else:
            write_file(folder / name, plan.shards[name], written=written)


def write_index(folder: Path, plan: WeightPlan, made: dict[str, Outgoing]) -> None:
    """Write the index over the table's file and all shards."""
    weight_map = {name: file for file, tensors in plan.shards.items() for name in tensors} | dict.fromkeys(made, TABLE)
    written = [*made.values(), *(tensor for tensors in plan.shards.values() for tensor in tensors.values())]
    total = sum(tensor.size for tensor in written)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
