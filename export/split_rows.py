"""Rows of a table as tensors that a graph can look up, each of one type."""

from typing import Any

import torch
from torch import nn


class SplitRows(nn.Module):
    """Stands for a table's rows: residual, values and scales as tensors of their own, ``[rows, ...]`` each.

    A table that is stored in the model's own type is one tensor. ``extents`` are the bytes of a stored row that each
    tensor holds, by the name of its embedding: exporters keep the type of an embedding's weight.
    """

    def __init__(self, table: torch.Tensor, encoding: dict[str, Any] | None, dtype: torch.dtype) -> None:
        """``table`` is as the checkpoint stores it; ``dtype`` is the type of the values that a look-up returns."""
        super().__init__()
        self.table, self.dtype = table, dtype
        self.slices = encoding["slices"] if encoding else []
        self.extents: dict[str, list[tuple[int, int]]] = {}
        if not encoding:
            self._keep("rows", table, [(0, table.shape[1] * table.itemsize)])
            return
        for kind in dict.fromkeys(part["dtype"] for part in self.slices):
            size = getattr(torch, kind).itemsize
            parts = [part for part in self.slices if part["dtype"] == kind]
            self._cut(f"values_{kind}", kind, [(part["start"], part["width"] * size) for part in parts])
        if scales := [(part["scale"], 4) for part in self.slices if part["scale"] is not None]:
            self._cut("scales", "float32", scales)

    def _cut(self, name: str, kind: str, extents: list[tuple[int, int]]) -> None:
        """Keep bytes of every row as values of a type."""
        found = torch.cat([self.table[:, start : start + size] for start, size in extents], 1)
        self._keep(name, found.view(getattr(torch, kind)), extents)

    def _keep(self, name: str, values: torch.Tensor, extents: list[tuple[int, int]]) -> None:
        self.add_module(name, nn.Embedding.from_pretrained(values))
        self.extents[name] = extents

    def names(self, module: str) -> list[str]:
        """Return the names of the tensors in a model that has these rows as ``module``."""
        return [f"{module}.{name}.weight" for name in self.extents]

    def fetch(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``[batch, seq]`` tokens, ``[batch, seq, width]``: read as stored, and cast behind that."""
        found: dict[str, torch.Tensor] = {name: self.get_submodule(name)(input_ids) for name in self.extents}
        if not self.slices:
            return found["rows"].to(self.dtype)
        at = dict.fromkeys(found, 0)
        return torch.cat([self._decoded(part, found, at) for part in self.slices], -1)

    def _decoded(self, part: dict[str, Any], found: dict[str, torch.Tensor], at: dict[str, int]) -> torch.Tensor:
        """Return the values of the next slice of its type."""
        name = f"values_{part['dtype']}"
        values = found[name][..., at[name] : at[name] + part["width"]]
        at[name] += part["width"]
        if part["scale"] is None:
            return values.to(self.dtype)
        scale = found["scales"][..., at["scales"] : at["scales"] + 1]
        at["scales"] += 1
        return (values.to(torch.float32) * scale).to(self.dtype)


def split_tables(model: Any) -> dict[str, SplitRows]:
    """Give every table of a folded model split rows; returns these by the names of the modules that hold them.

    Wherever the checkpoint places its table, a graph has it as tensors: placement is the runtime's from here on.
    """
    found: dict[str, SplitRows] = {}
    for fold in model.prefold_folds:
        table = model.get_submodule(fold["table"]["module"])
        rows = SplitRows(table.rows.table, table.entry["encoding"], table.bias.dtype)
        table.rows, table.entry = rows, table.entry | {"encoding": None}
        found[f"{fold['table']['module']}.rows"] = rows
    return found


def tensors_of(tables: dict[str, SplitRows]) -> list[str]:
    """Return the names of all tensors of the rows."""
    return [name for module, rows in tables.items() for name in rows.names(module)]
