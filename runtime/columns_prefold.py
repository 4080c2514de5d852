"""Stand-ins for the folded modules: a table, and columns of its rows.

This file travels in every folded checkpoint beside ``modeling_prefold.py``, and needs torch alone.
"""

import copy
import threading
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .storage_prefold import DiskRows, HostRows, TableError, decoded


class FoldedInputError(ValueError):
    """A folded model was given inputs that only the unfolded source can take."""


class Row:
    """The looked-up rows of the forward pass under way, ``[batch, seq, row_width]``, or None between passes.

    ``tokens`` holds what the embedding looked up, for a table beside it. Where the first layer sees a sum of look-ups,
    ``others`` and ``scales`` hold the other look-ups' shares of the last columns and the norms' scales. Every
    thread has its own, so that passes side by side do not read each other's.
    """

    def __init__(self, *, adds: bool) -> None:
        """``adds`` allows to add up rows of one pass: the columns are linear in them."""
        self.adds = adds
        self._of_thread = threading.local()  # not a base class: writes of compiled code would miss its storage

    def __reduce__(self) -> Any:
        return partial(Row, adds=self.adds), ()  # a copy of a model starts between passes

    @property
    def values(self) -> torch.Tensor | None:
        """The rows that the calling thread looked up."""
        return getattr(self._of_thread, "values", None)

    @property
    def others(self) -> torch.Tensor | None:
        """The sum of the other look-ups' shares of the last columns, ``[..., seq, width]``."""
        return getattr(self._of_thread, "others", None)

    @property
    def scales(self) -> tuple[torch.Tensor, ...]:
        """The scales of the norms passed so far, ``[batch, seq, 1]`` each."""
        return getattr(self._of_thread, "scales", ())

    @property
    def tokens(self) -> torch.Tensor | None:
        """The ids that the embedding looked up, ``[batch, seq]``."""
        return getattr(self._of_thread, "tokens", None)

    def keep_tokens(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep what the embedding looks up, for a table beside it; a hook."""
        self._of_thread.tokens = args[0]

    def take_tokens(self) -> torch.Tensor:
        """Return what the embedding looked up, once."""
        tokens, self._of_thread.tokens = _looked_up(self.tokens), None
        return tokens

    def add(self, values: torch.Tensor) -> None:
        """Keep rows; those of a second look-up in the same table, as of token types, are added."""
        if self.values is not None and not self.adds:
            raise FoldedInputError("a second look-up in one pass, as of token types: rows of this model do not add up")
        self._of_thread.values = values if self.values is None else self.values + values

    def add_others(self, values: torch.Tensor) -> None:
        """Add another look-up's share."""
        self._of_thread.others = values if self.others is None else self.others + values

    def add_scale(self, scale: torch.Tensor) -> None:
        """Keep a norm's scale."""
        self._of_thread.scales = (*self.scales, scale)

    def clear(self, *_: Any) -> None:
        """Drop the rows of an interrupted pass; a hook that runs before every pass."""
        self._of_thread.values = self._of_thread.others = self._of_thread.tokens = None
        self._of_thread.scales = ()

    def read(self) -> torch.Tensor:
        """Return the rows."""
        return _looked_up(self.values)


def _looked_up(found: torch.Tensor | None) -> torch.Tensor:
    if found is None:
        raise FoldedInputError(
            "no token ids were looked up in this forward pass: a folded model takes input_ids, not inputs_embeds"
        )
    return found


class Folded(nn.Module):
    """Common to all stand-ins: empty weights, for callers that ask a module for its dtype or initialize it."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        for part in ("weight", "bias"):
            self.register_buffer(part, torch.empty(0), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Folded":
        if not memo:  # as PEFT does, to train the copy in the module's place
            raise FoldedInputError(f"{self.extra_repr()}; a copy of it alone has no row to read: train the source")
        memo[id(self)] = made = self.__class__.__new__(self.__class__)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def extra_repr(self) -> str:
        """Name the module as folded, since adapters print this when they refuse it."""
        return f"{self.name} is folded into the table: it has no weights to train or to adapt"


def columns_of(fold: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the columns of an entry of ``config.json``; the residual is the first, where it is not the embedding."""
    residual, columns = fold["residual"], fold["columns"]
    return [*columns] if residual["module"] == fold["table"]["module"] else [residual, *columns]


def unread_of(fold: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the modules of an entry whose output is unread; the embedding, if it is one, still looks rows up."""
    return [each for each in fold["dropped"] if each["module"] != fold["table"]["module"]]


def residual_start(fold: dict[str, Any]) -> int | None:
    """Return where the embedding's slice of a row begins; None where the embedding itself is unread."""
    residual = fold["residual"]
    return int(residual["start"]) if residual["module"] == fold["table"]["module"] else None


def without(prefix: str, value: Any) -> Any:
    """Return JSON with a prefix taken from all module names; that of a tensor in a file stays."""
    if isinstance(value, dict):
        return {key: each if key == "tensor" else without(prefix, each) for key, each in value.items()}
    if isinstance(value, list):
        return [without(prefix, each) for each in value]
    return f"{value}.".removeprefix(prefix).removesuffix(".") if isinstance(value, str) else value


class Table(Folded):
    """Stands for the input embedding: fetches whole rows and returns their residual slice.

    On the device the table is a parameter. In host memory or on disk it is none, so that nothing moves, casts or
    counts it as one; it is a part of the state all the same.
    """

    padding_idx = None  # for a model that sets its embedding's row of padding to zero: here that is done

    def __init__(self, entry: dict[str, Any], row: Row, placement: str = "device", start: int | None = 0) -> None:
        """``entry`` is the table's in ``config.json``; ``start`` is the residual slice's, None if that is unread."""
        super().__init__(entry["module"])
        self.row, self.entry, self.start = row, entry, start
        self.rows: HostRows | DiskRows | None = None
        if placement == "device":
            dtype = torch.uint8 if entry["encoding"] else None
            self.weight = nn.Parameter(torch.empty(self.shape, dtype=dtype), requires_grad=False)
        else:
            self.weight = torch.empty(entry["rows"], 0)  # for callers that ask an embedding how many rows it has

    def __getattr__(self, name: str) -> Any:
        """Answer a model's own code that asks for the weight in a pass: as wide as the source's, without values."""
        if name == "weight" and self.row.values is not None:
            return self.bias.new_full((), torch.nan).expand(self.num_embeddings, self.embedding_dim)
        return super().__getattr__(name)

    @property
    def num_embeddings(self) -> int:
        """The size of the vocabulary."""
        return int(self.entry["rows"])

    @property
    def embedding_dim(self) -> int:
        """The width of what a look-up returns."""
        return int(self.entry["width"])

    @property
    def shape(self) -> tuple[int, int]:
        """The table's shape: rows, and their width as they are stored."""
        encoding = self.entry["encoding"]
        return self.entry["rows"], encoding["row_bytes"] if encoding else self.entry["row_width"]

    @property
    def is_on_device(self) -> bool:
        """Whether the table is a parameter."""
        return "weight" in self._parameters

    @property
    def values(self) -> torch.Tensor:
        """The table itself, wherever it lies.

        Raises:
            TableError: there is none yet, or its file has changed.
        """
        if self.rows is None and not self.is_on_device:
            raise TableError(f"{self.name}: its table was not loaded: load the checkpoint by from_pretrained")
        held: torch.Tensor = self._parameters["weight"] if self.rows is None else self.rows.table  # type: ignore[assignment]
        return held

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ``[batch, seq]`` ids; returns ``[batch, seq, width]``."""
        if self.training:
            raise FoldedInputError("a folded model cannot be trained: call eval(), or train the source and fold again")
        values = self._fetched(self.row.take_tokens() if self.entry["tokens_of"] else input_ids)
        self.row.add(values)
        start, width = self.start, self.entry["width"]
        if start is None:  # nobody reads the embedding itself, only what was made of it
            return values.new_empty(*input_ids.shape, width)
        return values[..., start : start + width]

    def _fetched(self, input_ids: torch.Tensor) -> torch.Tensor:
        found = functional.embedding(input_ids, self.values) if self.rows is None else self.rows.fetch(input_ids)
        if self.entry["encoding"]:
            return decoded(found, self.entry["encoding"]["slices"], self.bias.dtype)
        return found if self.rows is None else found.to(self.bias.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rows is not None:
            destination[f"{prefix}weight"] = self.rows.table

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name, errors = f"{prefix}weight", args[-1]
        given = state_dict.pop(name, None) if not self.is_on_device else None
        if given is not None and not (self.rows is not None and torch.equal(self.rows.table, given)):
            errors.append(f"{name}: the table is not on the device: load the checkpoint that has it")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Column(Folded):
    """Stands for a folded module: returns its slice of the row instead of computing it."""

    def __init__(self, name: str, row: Row, start: int, shape: list[int], *, masked: bool, last: bool) -> None:
        """``last`` is the last reader: it lets go of the row, so that none outlives its forward pass."""
        super().__init__(name)
        self.row, self.start, self.shape, self.masked, self.last = row, start, shape, masked, last
        self.stop = start + int(torch.Size(shape).numel())

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]``; of the input only its zeros at padded positions count, if ``masked``."""
        values = self.slice()
        if self.last:
            self.row.clear()
        values = values.to(self.weight.device)
        if self.masked:
            values = torch.where(hidden_states.ne(0).any(-1, keepdim=True), values, self.hidden(values))
        return values.unflatten(-1, self.shape) if len(self.shape) > 1 else values

    def hidden(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of padded positions, in the type of ``values``: zeros."""
        return values.new_zeros(())

    def slice(self) -> torch.Tensor:
        """Return the column's part of the row, ``[batch, seq, width]``."""
        return self.row.read()[..., self.start : self.stop]


class Unread(Folded):
    """Stands for a module whose output is unread: returns a tensor of its shape, for free."""

    def __init__(self, name: str, shape: list[int]) -> None:
        super().__init__(name)
        self.shape = shape

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ``[batch, seq, *shape]``, neither read nor written: memory of its own, since models scale in place."""
        return hidden_states.new_empty(*hidden_states.shape[:2], *self.shape)


class PaddingMarker(Unread):
    """Stands for a dropped norm in a block that zeroes padded positions behind it: marks them for columns."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return ones, ``[batch, seq, *shape]``."""
        return hidden_states.new_ones(()).expand(*hidden_states.shape[:2], *self.shape)


class ZeroOutput(Unread):
    """Stands for a module that is part of another's slice already: adds nothing."""

    def __init__(self, name: str, shape: list[int], row: Row | None = None) -> None:
        """``row`` is the one that this reads last, where there is no column."""
        super().__init__(name, shape)
        self.row = row

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return zeros, ``[batch, seq, *shape]``: memory of their own, for blocks that add to them in place."""
        if self.row is not None:
            self.row.read()
            self.row.clear()
        return hidden_states.new_zeros(*hidden_states.shape[:2], *self.shape)


def take_forms(stand_ins: dict[str, nn.Module], forms: list[dict[str, Any]]) -> None:
    """Let stand-ins take and return rows in the forms of the modules in whose place they are; norms that stay do so."""
    for entry in forms:
        stand_in, swapped, length = stand_ins.get(entry["module"]), entry["form"]["swapped"], entry["form"]["length"]
        if stand_in is not None and swapped:
            stand_in.register_forward_pre_hook(partial(_swap_taken, swapped))
            stand_in.register_forward_hook(partial(_swap, swapped))
        if stand_in is not None and length:
            stand_in.register_forward_hook(partial(_in_tuple, length))


def _swap_taken(swapped: list[int], _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].transpose(*swapped), *args[1:]) if args else args


def _swap(swapped: list[int], _: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output.transpose(*swapped).contiguous()


def _in_tuple(length: int, _: nn.Module, __: Any, output: torch.Tensor) -> tuple[Any, ...]:
    return (output, *[None] * (length - 1))
