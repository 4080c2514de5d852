"""Leave a module behind its last column, where no later column reads its output.

In a parallel block the FFN's column comes after the attention, whose output no row needs. A table of Pythia-70M's shape
and 20,000 tokens takes 1.5 times as long without this; a serial block, as Llama's, has nothing to leave.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prefold.convert.fold.layout import Cut


class _Left(Exception):
    """Raised behind a module's last column."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens


class Bypass:
    """Stands for a module's ``forward``: runs it whole once, then only up to the end of its last column."""

    def __init__(self, module: nn.Module, last_column: nn.Module) -> None:
        self._module, self._last_column = module, last_column
        self._forward = module.forward
        self._returned: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output for one text, in the shape of these texts and with zeros for values."""
        if self._returned is None:
            self._returned = self._forward(*args, **kwargs)
            return self._returned
        handle = self._last_column.register_forward_hook(_leave)
        try:
            return self._forward(*args, **kwargs)
        except _Left as left:
            tokens = left.tokens
        finally:
            handle.remove()
        return tree_map_only(torch.Tensor, lambda part: part.new_zeros(tokens, *part.shape[1:]), self._returned)

    def install(self) -> None:
        """Take the place of the module's ``forward``."""
        self._module.forward = self

    def remove(self) -> None:
        """Give the place back."""
        self._module.forward = self._forward


def _leave(_: nn.Module, __: Any, output: Any) -> None:
    raise _Left(tree_leaves(output)[0].shape[0])


def _last_columns(cut: Cut) -> dict[str, str]:
    """Map the largest modules that hold some of the columns, but not all, to the last of these."""
    names = [module for module in cut.computed if module != cut.residual.module]
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        holders = (".".join(parts[:length]) for length in range(1, len(parts)))
        partial = (holder for holder in holders if not all(each.startswith(f"{holder}.") for each in names))
        holder = next(partial, None)
        if holder is not None:
            found[holder] = name
    return found


@contextmanager
def bypassed(model: nn.Module, cut: Cut) -> Iterator[None]:
    """Bypass every module that holds some of the columns, but not all, while the block lasts.

    The first pass has to be one of a single text.
    """
    columns = _last_columns(cut).items()
    bypasses = [Bypass(model.get_submodule(module), model.get_submodule(last)) for module, last in columns]
    for bypass in bypasses:
        bypass.install()
    try:
        yield
    finally:
        for bypass in bypasses:
            bypass.remove()
