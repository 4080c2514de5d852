"""What of a table's row one rank holds, as values or, where rows are stored smaller, as bytes."""

from dataclasses import dataclass
from typing import Any

import torch

from prefold.runtime.storage_prefold import decoded

# Every slice begins at a multiple of as many bytes, as in the whole row, so that it can be read as any type.
_ALIGNED = 16


@dataclass(frozen=True)
class Part:
    """A part of a row.

    Attributes:
        taken: which of the whole row's elements it has, values or bytes, in this order.
        slices: how bytes are decoded; None where the elements are values.
        order: where, in what was decoded, each value of the part lies; None where they are.
    """

    taken: torch.Tensor
    slices: list[dict[str, Any]] | None = None
    order: torch.Tensor | None = None

    def read(self, found: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the part's values, ``[..., values]``, from its elements, ``[..., taken]``."""
        if self.slices is None or self.order is None:
            return found
        return decoded(found, self.slices, dtype)[..., self.order.to(found.device)]


def part_of(stored: dict[str, Any] | None, values: torch.Tensor) -> Part:
    """Find where some values of a row lie as the ``prefold`` section says that rows are stored."""
    if stored is None:
        return Part(values)
    taken, slices, places, first = list[torch.Tensor](), list[dict[str, Any]](), list[torch.Tensor](), 0
    for each in stored["slices"]:
        place = ((values >= first) & (values < first + each["width"])).nonzero().flatten()
        size = getattr(torch, each["dtype"]).itemsize
        start = sum(map(len, taken))
        taken.append(_bytes(each["start"] + (values[place] - first) * size, size))
        scale = None if each["scale"] is None else sum(map(len, taken))
        if scale is not None:
            taken.append(_bytes(torch.tensor([each["scale"]]), torch.float32.itemsize))
        slices.append(each | {"start": start, "width": len(place), "scale": scale})
        places.append(place)
        first += each["width"]
    return Part(torch.cat(taken), slices, torch.cat(places).argsort())


def _bytes(starts: torch.Tensor, size: int) -> torch.Tensor:
    """Return the bytes of elements of ``size`` bytes, and so many more that the next slice is aligned."""
    found = (starts[:, None] + torch.arange(size)).flatten()
    return torch.cat([found, torch.zeros(-len(found) % _ALIGNED, dtype=found.dtype)])
