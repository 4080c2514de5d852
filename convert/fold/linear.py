"""What separable columns hold: the model's own modules, in float64, run on one part of a sum after the other."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import UnsupportedModel
from prefold.convert.experiment.norm import gain_and_shift
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.fold.layout import Cut, Sum
from prefold.convert.model.running import hooks, run_side, stop

# Of one look-up's part, which is computed at once: 2 GiB in float64. 16,384 positions by 16,384 values are as many.
_MOST = 1 << 28


class Linear:
    """Everything between a sum of look-ups and its columns, as a linear map and a constant.

    It casts every module after the sum to float64 in place: of the model, nothing but the embeddings is of use then.
    """

    def __init__(self, model: PreTrainedModel, cut: Cut, sum_: Sum) -> None:
        self._model, self._cut, self._sum = model, cut, sum_
        self._is_fed = False
        width = self._weight(0).shape[1]
        self._gains = [gain_and_shift(model.get_submodule(norm.module), norm, width) for norm in sum_.norms]
        self._zero = self._columns(torch.zeros(1, width, dtype=torch.float64, device=model.device))

    def _weight(self, number: int) -> torch.Tensor:
        look_up = self._sum.look_ups[number]
        weight: torch.Tensor = getattr(self._model.get_submodule(look_up.module), look_up.weight)
        return weight

    def part(self, values: torch.Tensor) -> torch.Tensor:
        """Return what a part of the sum, ``[rows, width]``, adds to the columns, ``[rows, columns' width]``."""
        return self._behind(values.double(), 0)

    def _behind(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """Run values through the linear parts of all norms from ``first`` on, and through the columns' modules."""
        for norm, (gain, _) in list(zip(self._sum.norms, self._gains, strict=True))[first:]:
            values = norm.centre(values) * gain
        return self._columns(values) - self._zero

    def token_parts(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the columns of tokens whose part of the sum is ``rows``, ``[tokens, width]``, before its factor."""
        return self.part(rows.double() * self._sum.factor)

    def added(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that the sum needs beside the table, in the order and the shapes of ``Cut.added``.

        Raises:
            UnsupportedModel: one takes more memory than an experiment takes.
        """
        for number, look_up in enumerate(self._sum.look_ups):
            if (values := look_up.rows * self._zero.shape[1]) > _MOST:
                raise UnsupportedModel([f"{look_up.module} has {look_up.rows:,} rows: {values:,} values once folded"])
            parts = self.part(self._weight(number).detach() * torch.tensor(look_up.factor, dtype=torch.float64))
            yield f"{look_up.module}.prefold.{look_up.weight}", parts
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
                seen[name] = output.flatten(2)[:, 0].clone()
                if seen.keys() == wanted:
                    stop()

            return hook

        self._is_fed = False
        wider = {name: self._widen for name, _ in self._model.named_modules()}
        with hooks(self._model, wider, self._feeding(values[:, None]) | {name: keep(name) for name in wanted}):
            token = experiment_tokens(self._model.config)[:1, :1].to(self._model.device)
            run_side(self._model, self._cut.side, token.expand(len(values), 1))
        return torch.cat([seen[column.module] for column in self._sum.columns], dim=1)

    def _feeding(self, values: torch.Tensor) -> dict[str, Any]:
        """Return hooks that let ``values`` come out of the last norm, or be the sum itself."""
        if self._sum.norms:
            return {self._sum.norms[-1].module: lambda *_: self._fed(values)}
        silent: dict[str, Any] = {each.module: _silence for each in self._sum.look_ups}
        return silent | {self._sum.token: lambda *_: self._fed(values / self._sum.factor)}

    def _fed(self, values: torch.Tensor) -> torch.Tensor:
        self._is_fed = True
        return values

    def _widen(self, module: nn.Module, *_: Any) -> None:
        """Turn what a module holds itself to float64, once values in float64 are under way: a hook before it."""
        if self._is_fed:
            for held in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                held.data = held.data.double() if held.is_floating_point() else held.data


def _silence(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
