"""The tensors that a fold computes, each made when it is written, and hashed on its way."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from math import prod

import torch
from transformers import PreTrainedModel

from prefold.convert.adapter import merge_into_first_layer, modules_in_tables
from prefold.convert.checkpoint.safetensors_file import Outgoing, as_bytes, dtype_name
from prefold.convert.errors import BrokenCheckpoint
from prefold.convert.fold.first_layer import load_first_layer, method_of, require_token_pure
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import added_tensors, chunk_size, prefetched, table_rows
from prefold.convert.fold.tensors import WeightPlan
from prefold.convert.prepare import Prepared


class TableWriter:
    """Computes tables and the tensors beside them, in the order in which they are written.

    Attributes:
        outgoing: the tensors, by their names in the folded checkpoint.
        digests: their hashes, complete once they were written.
        chunk_tokens: rows of each table that are computed at once.
    """

    def __init__(self, known: Prepared, plan: WeightPlan) -> None:
        self._known, self._plan = known, plan
        self.digests = {made.name: hashlib.sha256() for made in plan.made.values()}
        self.outgoing: dict[str, Outgoing] = {}
        self._ready: dict[str, torch.Tensor] = {}
        cuts, asked = known.study.cuts, known.options.chunk_tokens
        self.chunk_tokens = [asked or chunk_size(cut, known.dtype.itemsize) for cut in cuts]
        for cut, chunk_tokens in zip(cuts, self.chunk_tokens, strict=True):
            self._add(f"{cut.embedding}.weight", partial(self._table, cut, chunk_tokens))
            for parameter in cut.added:
                self._add(parameter, partial(self._added, cut, parameter))

    def _add(self, parameter: str, pieces: Callable[[], Iterable[torch.Tensor]]) -> None:
        made = self._plan.made[parameter]
        dtype = made.dtype_in(self._known.dtype)
        chunks = partial(self._hashed, made.name, pieces)
        self.outgoing[made.name] = Outgoing(dtype_name(dtype), made.shape, prod(made.shape) * dtype.itemsize, chunks)

    def _hashed(self, name: str, pieces: Callable[[], Iterable[torch.Tensor]]) -> Iterator[memoryview]:
        for rows in pieces():
            piece = as_bytes(rows)
            self.digests[name].update(piece)
            yield piece

    @cached_property
    def _model(self) -> PreTrainedModel:
        """The first layer with its weights, loaded for the first row."""
        known, study = self._known, self._known.study
        model = load_first_layer(
            known.source,
            known.resolved.model_class,
            known.config,
            study.stacks,
            study.unreached,
            dtype=known.dtype,
            device=known.options.device,
        )
        if known.options.adapter:
            model = merge_into_first_layer(model, known.options.adapter, modules_in_tables(study.cuts))
        if method_of(known.config):
            for cut in study.cuts:
                require_token_pure(model, cut)
        return model

    def _table(self, cut: Cut, chunk_tokens: int) -> Iterator[torch.Tensor]:
        return prefetched(self._rows(cut, chunk_tokens))

    def _rows(self, cut: Cut, chunk_tokens: int) -> Iterator[torch.Tensor]:
        dtype = self._known.dtype
        for rows in table_rows(self._model, cut, chunk_tokens):
            if rows.dtype != dtype:
                raise BrokenCheckpoint(f"the first layer answers in {rows.dtype}, not in the model's {dtype}")
            yield cut.encoding.encode(rows) if cut.encoding else rows

    def _added(self, cut: Cut, parameter: str) -> list[torch.Tensor]:
        if parameter not in self._ready:
            self._ready |= added_tensors(self._model, cut, self._known.dtype)
        return [self._ready.pop(parameter)]
