"""The arguments of a model's mask: which columns are padding, and how far back a query sees."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_overlay,
    sdpa_mask,
    sliding_window_overlay,
)

from prefold.tree.errors import WrongAttention

NAME = "prefold_tree"
# Functions that transformers makes for each call are told apart by their code.
_BOTH = and_masks(causal_mask_function).__code__
_WINDOWS = {
    sliding_window_overlay(1).__code__: "sliding",
    chunked_overlay(1, torch.zeros(1)).__code__: "chunked",
}


@dataclass(frozen=True, slots=True)
class Window:
    """How far back a query sees: ``size`` tokens with itself, or to the beginning of its chunk of ``size``."""

    kind: str
    size: int

    def first(self, position: Any) -> Any:
        """Return the first position that a query at ``position`` sees; integers or tensors."""
        return position - self.size + 1 if self.kind == "sliding" else position // self.size * self.size


class TreeMask:
    """The arguments of a mask; the mask itself is made only where ordinary tensors are attended to."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._made: dict[bool, torch.Tensor | None] = {}

    @property
    def padding(self) -> torch.Tensor | None:
        """Which columns hold tokens, ``[batch, columns]``; None if all do."""
        found: torch.Tensor | None = self._arguments["attention_mask"]
        return found

    def window(self) -> Window | None:
        """Return how far back a query sees, None for the first token; ``WrongAttention`` for other masks."""
        function = self._arguments["mask_function"]
        if function is causal_mask_function:
            return None
        kind = _window_kind(function)
        if kind is None or not self._arguments.get("local_size"):
            raise WrongAttention(
                "TreeCache: a mask that is neither causal nor a causal window (cross-attention has a cache of its own:"
                " EncoderDecoderCache(TreeCache(...), DynamicCache()))"
            )
        return Window(kind, int(self._arguments["local_size"]))

    def ordinary(self, *, skip: bool = True) -> torch.Tensor | None:
        """Return the mask that transformers would have made, ``[batch, 1, queries, keys]``.

        ``skip``: None where torch's own attention knows what is meant.
        """
        if skip not in self._made:
            skips = {} if skip else {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
            self._made[skip] = sdpa_mask(**(self._arguments | skips))
        return self._made[skip]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise WrongAttention(
            f"{NAME}: this model wants a mask of its own ({name}), and not what AttentionInterface has"
        )

    def __getitem__(self, _: Any) -> Any:
        return self.__getattr__("a part of it")


def _window_kind(function: Callable[..., Any]) -> str | None:
    """Return the window that transformers joined with causality; None for another mask."""
    if getattr(function, "__code__", None) is not _BOTH or not function.__closure__:
        return None
    parts = next(cell.cell_contents for cell in function.__closure__ if isinstance(cell.cell_contents, tuple))
    if len(parts) != 2 or causal_mask_function not in parts:
        return None
    other = parts[0] if parts[1] is causal_mask_function else parts[1]
    return _WINDOWS.get(code) if (code := getattr(other, "__code__", None)) else None
