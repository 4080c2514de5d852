"""What a process sends: every collective that PyTorch starts, with its bytes, as the dispatcher sees it.

Bytes are counted as in appendix A.1 of Pope et al. 2022: an all-gather by what a chip has afterwards, a reduce-scatter
and an all-to-all by what it has before, each times (K-1)/K for K chips; an all-reduce is a reduce-scatter and an
all-gather.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_C10D: Any = distributed_c10d
_SPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d", "_dtensor")
_KINDS = {
    "all_gather_into_tensor": "all-gather",
    "_allgather_base_": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all_single": "all-to-all",
}
_SEND_NOTHING = ("wait_tensor", "_wrap_tensor_autograd", "mesh_get_process_group")


@dataclass(frozen=True)
class Sent:
    """One collective of one process.

    Attributes:
        part: of the block, that it was sent for.
        kind: ``all-gather``, ``reduce-scatter``, ``all-reduce`` or ``all-to-all``.
        over: processes of the group.
        bytes: that the process sends.
    """

    part: str
    kind: str
    over: int
    bytes: float


class Ledger(TorchDispatchMode):
    """Keeps what is sent while it is entered; raises ``ValueError`` for a collective that it cannot count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[Sent] = []
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Enter what follows under a part of the block."""
        before, self._part = self._part, name
        yield
        self._part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let a distributed tensor run first, and see the collectives that it starts."""
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space in _SPACES and name not in _SEND_NOTHING:
            self.sent.append(self._entry(name, args, out))
        return out

    def _entry(self, name: str, args: Any, out: Any) -> Sent:
        if name not in _KINDS:
            raise ValueError(f"{name}: no such collective is counted")
        kind = _KINDS[name]
        source, target = (args[1], args[0]) if name == "_allgather_base_" else (args[0], out)
        over = _size(args[-1]) if kind in ("all-reduce", "all-to-all") else _ratio(source, target)
        held = max(_bytes(source), _bytes(target)) * (2 if kind == "all-reduce" else 1)
        return Sent(self._part, kind, over, held * (over - 1) / over)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _ratio(one: torch.Tensor, other: torch.Tensor) -> int:
    return max(one.numel(), other.numel()) // min(one.numel(), other.numel())


def _size(group: Any) -> int:
    return int((_C10D._resolve_process_group(group) if isinstance(group, str) else group).size())
