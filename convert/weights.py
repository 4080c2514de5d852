"""Which tensors go into which file of the folded checkpoint."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefold.convert.cut import Cut
from prefold.convert.files import INDEX, TABLE
from prefold.convert.shards import DTYPES, Entry, Outgoing, cast, dtype_name, file_overhead, passed_through, write_file


@dataclass(frozen=True)
class WeightPlan:
    """The files to be written.

    Attributes:
        shards: the untouched tensors, by file.
        table_name: the table's name, which is the source embedding's.
    """

    shards: dict[str, dict[str, Outgoing]]
    table_name: str

    @property
    def shard_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(
            file_overhead(tensors) + sum(tensor.size for tensor in tensors.values()) for tensors in self.shards.values()
        )


def plan_weights(
    entries: dict[str, Entry],
    live: dict[str, str],
    cut: Cut,
    head: str | None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
) -> WeightPlan:
    """Keep every tensor that is not folded, as it is, in the files in which it came.

    ``head`` names the output head of a tied source: it gets the embedding as a tensor of its own. ``dtype``
    casts what is kept; ``max_shard_size``, in bytes, repacks it.
    """
    outgoing: list[tuple[Path, str, Outgoing]] = []
    table_name = next(name for name, parameter in live.items() if parameter == f"{cut.embedding}.weight")
    for name, entry in entries.items():
        tensor = passed_through(entry) if dtype in (None, DTYPES[entry.dtype]) else cast(entry, dtype)
        if name == table_name and head and head not in live.values():
            outgoing.append((entry.file, head, tensor))
        elif not any(live[name].startswith(f"{module}.") for module in cut.eliminated):
            outgoing.append((entry.file, name, tensor))
    groups = list(_by_size(outgoing, max_shard_size) if max_shard_size else _by_file(outgoing))
    return WeightPlan(
        {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}, table_name
    )


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


def table_outgoing(cut: Cut, dtype: torch.dtype, chunks: Callable[[], Iterator[memoryview]]) -> Outgoing:
    """Describe the table as a tensor, ``[rows, row_width]``."""
    shape = [cut.rows, cut.row_width]
    return Outgoing(dtype_name(dtype), shape, cut.rows * cut.row_width * dtype.itemsize, chunks)


def write_shards(folder: Path, plan: WeightPlan, written: Callable[[int], None]) -> None:
    """Write all untouched tensors."""
    for name, tensors in plan.shards.items():
        write_file(folder / name, tensors, written=written)


def write_index(folder: Path, plan: WeightPlan, table: Outgoing) -> None:
    """Write the index over the table and all shards."""
    weight_map = {name: file for file, tensors in plan.shards.items() for name in tensors} | {plan.table_name: TABLE}
    total = table.size + sum(tensor.size for tensors in plan.shards.values() for tensor in tensors.values())
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
