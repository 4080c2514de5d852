"""What stands in one of vLLM's models for the modules that were folded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prefold.runtime.columns_prefold import Row
from prefold.runtime.vllm.table import Table

_PLAIN = (int, float, str, list, tuple)


class CountedRow(Row):
    """The rows of the pass under way, ``[tokens, width]``, until all of their readers have read.

    The last reader lets go of them, whichever it is: rows that outlive a compiled pass would be one of its outputs.
    """

    def __init__(self, readers: int) -> None:
        super().__init__(adds=False)
        self._readers = readers

    @property
    def is_awaited(self) -> bool:
        """Whether the model is in a pass of its own, so that rows will be read."""
        return getattr(self._of_thread, "awaited", False)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Let look-ups be those of a pass of the model; others are a draft's that asks its target for an embedding."""
        self._of_thread.awaited = True
        try:
            yield
        finally:
            self._of_thread.awaited = False

    def begin(self, values: torch.Tensor) -> None:
        """Keep the rows of a new pass; what one that was interrupted left is dropped."""
        self.clear()
        self._of_thread.left = self._readers
        self.add(values)

    def take(self, begin: int, end: int) -> torch.Tensor:
        """Return a slice, contiguous, since some fused kernels ask for that; ``[tokens, end - begin]``."""
        values = self.read()[..., begin:end].contiguous()
        self._of_thread.left -= 1
        if not self._of_thread.left:
            self.clear()
        return values


class FoldedEmbedding(nn.Module):
    """Looks rows up, and returns their residual.

    Where an embedding of vLLM's is a model's head as well, it becomes one of these, too: its weight is the head's.
    Drafts may take a target's embedding for theirs; they get the residual, which ``is_plain`` where it is just that.
    """

    prefold: Table
    row: CountedRow
    residual: int | None
    is_plain: bool

    def __init__(self, embedding_dim: int) -> None:
        """``embedding_dim`` counts the values of what is returned."""
        super().__init__()
        self.embedding_dim = embedding_dim
        # No rows: what a draft compares with an embedding of its own, which is then never the same.
        self.register_buffer("weight", torch.empty(0, embedding_dim), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look ``[tokens]`` ids up; returns ``[tokens, hidden]``."""
        values: torch.Tensor = self.prefold(input_ids)
        if self.row.is_awaited:
            self.row.begin(values)
        if self.residual is None:
            return values.new_empty(*input_ids.shape, self.embedding_dim)
        return values[..., : self.residual].contiguous()


class Reader(nn.Module):
    """Stands for a folded module: returns its slice of the row."""

    def __init__(self, module: nn.Module, row: CountedRow, begin: int, end: int, *, silent: bool, pair: bool) -> None:
        """``module`` is the one that is folded.

        ``silent``: another rank says it already; ``pair``: nothing is returned beside it, as a bias would be.
        """
        super().__init__()
        plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN) and name[0] != "_"}
        self.__dict__ |= plain  # its sizes, for callers that split by them
        self.row, self.begin, self.end, self.silent, self.pair = row, begin, end, silent, pair

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return ``[tokens, width]``."""
        values = self.row.take(self.begin, self.end)
        values = torch.zeros_like(values) if self.silent else values
        return (values, None) if self.pair else values


class Passed(nn.Module):
    """Stands for a norm whose output is in the row already, or is not read: hands its input on."""

    def __init__(self, *, pair: bool) -> None:
        """``pair``: a residual is always returned, too."""
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, *_: Any) -> Any:
        """Return ``[tokens, width]`` as it came, with the residual as it came if there is one."""
        return (hidden_states, residual) if self.pair or residual is not None else hidden_states


class Zeros(nn.Module):
    """Stands for an FFN that is part of the residual already: adds nothing."""

    def __init__(self, *, pair: bool) -> None:
        """``pair``: with no bias beside it."""
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Return zeros, ``[tokens, width]``."""
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.pair else zeros
