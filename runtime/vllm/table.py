"""A rank's part of the table in vLLM: on the device, in host memory, or in its file."""

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn import functional

from prefold.runtime.storage_prefold import DiskRows, HostRows, TableError, find_extent
from prefold.runtime.vllm.part import part_of

# Rows that are cut at once: what a rank holds of the whole table at any time, beside its part.
_CHUNK = 4096


class Table(nn.Module):
    """The rows' values that one rank holds."""

    def __init__(self, entry: dict[str, Any], values: torch.Tensor, placement: str, sha256: str) -> None:
        """``entry`` tells of the table as ``config.json`` does; ``values`` are those of a row that this rank holds."""
        super().__init__()
        self.entry, self.placement, self.sha256 = entry, placement, sha256
        self.part, self.dtype = part_of(entry["encoding"], values), torch.get_default_dtype()
        self.kept = torch.uint8 if entry["encoding"] else self.dtype
        self.key, self.width = f"{placement} {sha256}", len(self.part.taken)
        self.is_filled = False
        if placement == "device":
            rows = torch.empty(entry["rows"], self.width, dtype=self.kept)
            self.weight = nn.Parameter(rows, requires_grad=False)
        else:
            _PLACED[self.key] = self

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``[tokens]`` ids, ``[tokens, values]``."""
        if self.placement == "device":
            found = functional.embedding(input_ids, self.weight)
        else:
            found = _look_up(input_ids, self.key, self.width, self.kept)
        return self.part.read(found, self.dtype)

    def fill(self, table: torch.Tensor) -> None:
        """Take this rank's part of the whole table, a few rows at a time; ``table`` may be a mapped file.

        Raises:
            TableError: it is not the table that ``config.json`` tells of.
        """
        self._require_shape(table)
        for rows, cut in self._cut(table):
            self.weight.data[rows].copy_(cut)
        self.is_filled = True

    def place(self, files: Iterable[str]) -> None:
        """Find the table in the checkpoint's files and leave it there, or read this rank's part of it.

        Raises:
            TableError: no file has it, or it is not the table that was written.
        """
        extent = find_extent(files, [self.entry["tensor"]])
        mapped = DiskRows.load(extent, self.sha256)
        self._require_shape(mapped.table)
        self.rows: DiskRows | HostRows = mapped
        if self.placement == "host":
            held = torch.empty(self.entry["rows"], self.width, dtype=mapped.table.dtype, device="cpu")
            for rows, cut in self._cut(mapped.table):
                held[rows].copy_(cut)
            self.rows = HostRows(held)
        self.is_filled = True

    def fetch(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of rows that are not on the device, ``[tokens, taken]``.

        Raises:
            TableError: there is no table yet, or its file is no longer what it was.
        """
        if not self.is_filled:
            raise TableError(f"{self.entry['tensor']}: its table was not loaded")
        found = self.rows.fetch(input_ids)
        if isinstance(self.rows, DiskRows):
            found = found.index_select(-1, self.part.taken.to(found.device))
        return found.to(self.kept)

    def _cut(self, table: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, len(table), _CHUNK):
            rows = slice(start, start + _CHUNK)
            yield rows, table[rows].index_select(1, self.part.taken.to(table.device))

    def _require_shape(self, table: torch.Tensor) -> None:
        stored = self.entry["encoding"]
        shape = [self.entry["rows"], stored["row_bytes"] if stored else self.entry["row_width"]]
        if list(table.shape) != shape:
            raise TableError(f"{self.entry['tensor']}: {list(table.shape)}, where config.json tells of {shape}")


# By what a table is, and not by a number of this process: compiled code is kept and used again by others.
_PLACED: WeakValueDictionary[str, Table] = WeakValueDictionary()


@torch.library.custom_op("prefold::look_up", mutates_args=())
def _look_up(input_ids: torch.Tensor, key: str, width: int, dtype: torch.dtype) -> torch.Tensor:
    return _PLACED[key].fetch(input_ids)


@_look_up.register_fake
def _(input_ids: torch.Tensor, key: str, width: int, dtype: torch.dtype) -> torch.Tensor:
    return input_ids.new_empty(*input_ids.shape, width, dtype=dtype)
