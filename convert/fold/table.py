"""Compute the table: the model's own first-layer modules, run over the whole vocabulary in chunks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import BrokenCheckpoint, ModelFailed
from prefold.convert.fold.bypass import bypassed
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.linear import Linear
from prefold.convert.model.running import hooks, run_side, stop

# Rows of this size are still in a processor's cache when they are checked, hashed and written; much smaller chunks
# spend their time on waiting for threads.
_CHUNK_BYTES = 16 << 20
# Fewer tokens make a slow matrix product of wide layers, whose weights are read again for every chunk.
_MIN_CHUNK, _MAX_CHUNK = 512, 4096
_TRIAL_TOKENS = 16


def chunk_size(cut: Cut, itemsize: int) -> int:
    """Choose how many tokens to run at once: enough for a large matrix product, few enough for a cache."""
    return max(_MIN_CHUNK, min(_MAX_CHUNK, _CHUNK_BYTES // (cut.row_width * itemsize)))


def compute_rows(model: PreTrainedModel, cut: Cut, input_ids: torch.Tensor) -> torch.Tensor:
    """Run ``[batch, seq]`` tokens through the first layer and lay out what is token-pure, ``[batch, seq, width]``.

    ``model`` may be the whole source or its first layer alone: the pass ends with the last folded module.
    """
    seen: dict[str, torch.Tensor] = {}
    wanted = cut.computed

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            seen[name] = output.clone()  # the block may add to its own intermediate in place
            if len(seen) == len(wanted):
                stop()

        return hook

    with hooks(model, {}, {column.module: keep(column.module) for column in wanted}):
        run_side(model, cut.side, input_ids)
    if len(seen) < len(wanted):
        raise ModelFailed("a pass ends before all modules that fold have run")
    residual = seen[cut.residual.module]
    if cut.merged:
        residual = residual + seen[cut.merged.module]
    return torch.cat([residual, *(seen[column.module].flatten(2) for column in cut.columns)], dim=2)


def table_rows(model: PreTrainedModel, cut: Cut, chunk_tokens: int) -> Iterator[torch.Tensor]:
    """Yield the table from the first token to the last, ``[tokens, row_width]`` at a time, on the CPU.

    ``model`` is of no other use behind it, if the cut has a sum: see ``Linear``.

    Raises:
        BrokenCheckpoint: a row is not finite.
    """
    linear = Linear(model, cut, cut.sum) if cut.sum else None
    with _shortened(model, cut):
        for start in range(0, cut.rows, chunk_tokens):
            rows = compute_rows(model, cut, _ids(model, start, min(start + chunk_tokens, cut.rows)))[:, 0]
            if linear:
                rows = torch.cat([rows, linear.token_parts(_slice(rows, cut)).to(rows.dtype)], dim=1)
            rows = rows.cpu()
            _require_finite(rows, cut, start)
            yield rows


def added_tensors(model: PreTrainedModel, cut: Cut, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a sum needs beside the table, on the CPU; see ``table_rows`` of the model."""
    if cut.sum:
        for name, values in Linear(model, cut, cut.sum).added():
            yield name, values.to(dtype).cpu()


def _slice(rows: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Return the part of rows that is the token's part of the sum."""
    column = next(column for column in cut.stored if cut.sum and column.module == cut.sum.token)
    return rows[:, column.start : column.start + column.width]


def _ids(model: PreTrainedModel, start: int, stop: int) -> torch.Tensor:
    """Return tokens, each as a sequence of its own, which attends to nothing: ``[tokens, 1]``."""
    return torch.arange(start, stop, device=model.device)[:, None]


@contextmanager
def _shortened(model: PreTrainedModel, cut: Cut) -> Iterator[None]:
    """Leave out of a pass what no column reads, if a few tokens show that their rows stay the same to the bit."""
    ids = _ids(model, 0, min(_TRIAL_TOKENS, cut.rows))
    whole = compute_rows(model, cut, ids)
    with ExitStack() as bypasses:
        bypasses.enter_context(bypassed(model, cut))
        try:
            compute_rows(model, cut, ids[:1])
            same = torch.equal(compute_rows(model, cut, ids), whole)
        except ModelFailed:
            same = False  # the block does something with the module's answer that zeros do not allow
        if not same:
            bypasses.close()
        yield


def _require_finite(rows: torch.Tensor, cut: Cut, start: int) -> None:
    low, high = rows.aminmax()  # either is NaN where any value is; many times faster than asking every value
    if low.isfinite() and high.isfinite():
        return
    finite = rows.isfinite()
    token, value = (int(index) for index in (~finite).nonzero()[0])
    column = next(c for c in reversed(cut.stored) if c.start <= value)
    raise BrokenCheckpoint(
        f"token {start + token}: {column.module} is not finite there; the source's weights are broken"
    )
