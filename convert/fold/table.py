"""Compute the table: the model's own first-layer modules, run over the whole vocabulary in chunks."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import BrokenCheckpoint, ModelFailed, UnsupportedModel, model_code
from prefold.convert.experiment.look_ups import gain_and_shift
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.fold.bypass import bypassed
from prefold.convert.fold.layout import Cut, Sum
from prefold.convert.model.running import hooks, run_side, stop

Item = TypeVar("Item")


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, one made ahead in a thread of its own: two are in memory at a time."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # the end is no item, but mypy cannot know


# Of one look-up's part, which is computed at once: 2 GiB in float64. 16,384 positions by 16,384 values are as many.
_MOST = 1 << 28


class Linear:
    """Everything between a sum of look-ups and its columns, as a linear map and a constant.

    It casts every module after the sum to float64 in place: of the model, nothing but the embeddings is of use then.
    """

    def __init__(self, model: PreTrainedModel, cut: Cut, sum_: Sum) -> None:
        self._model, self._cut, self._sum = model, cut, sum_
        self._is_fed = False
        token = cut.slice_of(sum_.token)
        width = self._through(sum_.token, torch.zeros(1, token.stop - token.start, device=model.device)).shape[1]
        self._gains = [gain_and_shift(model.get_submodule(norm.module), norm, width) for norm in sum_.norms]
        self._zero = self._columns(torch.zeros(1, width, dtype=torch.float64, device=model.device))

    def _weight(self, number: int) -> torch.Tensor:
        look_up = self._sum.look_ups[number]
        weight: torch.Tensor = getattr(self._model.get_submodule(look_up.module), look_up.weight)
        return weight

    def part(self, values: torch.Tensor) -> torch.Tensor:
        """Return the columns' share, ``[rows, columns' width]``, of a part of the sum, ``[rows, width]``."""
        return self._behind(values.double(), 0)

    def _behind(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """Run values through the linear parts of all norms from ``first`` on, and through the columns' modules."""
        for norm, (gain, _) in list(zip(self._sum.norms, self._gains, strict=True))[first:]:
            values = norm.centre(values) * gain
        return self._columns(values) - self._zero

    def completed(self, rows: torch.Tensor) -> torch.Tensor:
        """Put the token's part of the sum behind its token-pure slices: ``[tokens, row_width]``."""
        token = rows[:, self._cut.slice_of(self._sum.token)]
        part = self.part(self._through(self._sum.token, token) * self._sum.factor)
        return torch.cat([rows, part.to(rows.dtype)], dim=1)

    def added(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that the sum needs beside the table, in the order and the shapes of ``Cut.added``.

        Raises:
            UnsupportedModel: one takes more memory than an experiment takes.
        """
        for number, look_up in enumerate(self._sum.look_ups):
            if (values := look_up.rows * self._zero.shape[1]) > _MOST:
                raise UnsupportedModel([f"{look_up.module} has {look_up.rows:,} rows: {values:,} values once folded"])
            rows = self._weight(number).detach()
            if look_up.mapped:
                rows = self._through(look_up.module, rows) - self._through(look_up.module, torch.zeros_like(rows[:1]))
            yield f"{look_up.module}.prefold.{look_up.weight}", self.part(rows.double() * look_up.factor)
        steps = [self._behind(shift[None], step + 1) for step, (_, shift) in enumerate(self._gains)]
        hidden = [self._zero] if self._sum.masked else []
        biases = torch.cat([*steps[:-1], (steps[-1] if steps else 0) + self._zero, *hidden])
        start = self._sum.columns[0].start
        for column in self._sum.columns:
            first = column.start - start
            yield f"{column.module}.bias", biases[:, first : first + column.width].contiguous()

    def _columns(self, values: torch.Tensor) -> torch.Tensor:
        """Let ``values``, ``[rows, width]``, come out of the last norm, and collect the columns."""
        seen: dict[str, torch.Tensor] = {}
        wanted = {column.module for column in self._sum.columns}

        def keep(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
                seen[name] = self._cut.form_of(name).rows(output).flatten(2)[:, 0].clone()
                if seen.keys() == wanted:
                    stop()

            return hook

        self._is_fed = False
        wider = {name: self._widen for name, _ in self._model.named_modules()}
        with hooks(self._model, wider, self._feeding(values[:, None]) | {name: keep(name) for name in wanted}):
            self._run(len(values))
        return torch.cat([seen[column.module] for column in self._sum.columns], dim=1)

    def _through(self, source: str, rows: torch.Tensor) -> torch.Tensor:
        """Return what the map makes of one module's rows, ``[rows, width]``, alone; without a map, the rows."""
        if self._sum.through == self._sum.token:
            return rows.double()
        taken = list[torch.Tensor]()

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            taken.extend(args)
            stop()

        others = [self._sum.token, *(look_up.module for look_up in self._sum.look_ups)]
        feeding = dict.fromkeys(others, _silence) | {source: self._fed(source, rows[:, None])}
        with hooks(self._model, {self._sum.through: keep}, feeding):
            self._run(len(rows))
        wide = copy.deepcopy(self._model.get_submodule(self._sum.through)).double()
        with torch.no_grad(), model_code():
            return wide(*(each.double() for each in taken))[:, 0]  # type: ignore[no-any-return]

    def _run(self, texts: int) -> None:
        """Run the side on as many texts, whose tokens do not count, until a hook ends the pass."""
        token = experiment_tokens(self._model.config)[0, :1].to(self._model.device)
        run_side(self._model, self._cut.side, self._cut.texts(token.expand(texts)))

    def _feeding(self, values: torch.Tensor) -> dict[str, Any]:
        """Return hooks that let ``values`` come out of the last norm, or be the sum itself."""
        if self._sum.norms:
            return {(norm := self._sum.norms[-1].module): self._fed(norm, values)}
        silent: dict[str, Any] = {each.module: _silence for each in self._sum.look_ups}
        return silent | {self._sum.through: self._fed(self._sum.through, values / self._sum.factor)}

    def _fed(self, name: str, values: torch.Tensor) -> Any:
        """Return a hook that lets ``values``, ``[tokens, 1, width]``, come out of a module at every position."""
        form = self._cut.form_of(name)

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            self._is_fed = True
            return form.output(values.expand(-1, form.rows(output).shape[1], -1))

        return hook

    def _widen(self, module: nn.Module, *_: Any) -> None:
        """Cast a module's own tensors to float64 once values in float64 are under way: a hook before it."""
        if self._is_fed:
            for held in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                held.data = held.data.double() if held.is_floating_point() else held.data


def _silence(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


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
    """Run ``[batch, seq]`` tokens through the first layer and lay out the token-pure slices, ``[batch, seq, width]``.

    ``model`` may be the whole source or its first layer alone: the pass ends with the last folded module.
    """
    seen: dict[str, torch.Tensor] = {}
    wanted = cut.computed

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            found = cut.form_of(name).rows(output).flatten(2)
            seen[name] = found.clone()  # the block may add to its own intermediate in place
            if len(seen) == len(wanted):
                stop()

        return hook

    with hooks(model, {}, {module: keep(module) for module in wanted}):
        run_side(model, cut.side, input_ids)
    if len(seen) < len(wanted):
        raise ModelFailed("a pass ends before all modules that fold have run")
    return cut.rows_of(seen)


def table_rows(model: PreTrainedModel, cut: Cut, chunk_tokens: int) -> Iterator[torch.Tensor]:
    """Yield the table from the first token to the last, ``[tokens, row_width]`` at a time, on the CPU.

    ``model`` is of no other use behind it, if the cut has a sum: see ``Linear``.

    Raises:
        BrokenCheckpoint: a row is not finite.
    """
    linear = Linear(model, cut, cut.sum) if cut.sum else None
    with _shortened(model, cut):
        for start in range(0, cut.rows, chunk_tokens):
            rows = compute_rows(model, cut, _texts(model, cut, start, min(start + chunk_tokens, cut.rows)))[:, 0]
            rows = (linear.completed(rows) if linear else rows).cpu()
            _require_finite(rows, cut, start)
            yield rows


def added_tensors(model: PreTrainedModel, cut: Cut, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a sum needs beside the table, on the CPU; see ``table_rows`` of the model."""
    if cut.sum:
        for name, values in Linear(model, cut, cut.sum).added():
            yield name, values.to(dtype).cpu()


def _texts(model: PreTrainedModel, cut: Cut, start: int, stop: int) -> torch.Tensor:
    """Return tokens, each as a text of its own: ``[tokens, length]``."""
    return cut.texts(torch.arange(start, stop, device=model.device))


@contextmanager
def _shortened(model: PreTrainedModel, cut: Cut) -> Iterator[None]:
    """Leave modules behind their last column, if a few tokens show that rows stay the same to the bit."""
    ids = _texts(model, cut, 0, min(_TRIAL_TOKENS, cut.rows))
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
