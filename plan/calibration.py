"""From ideal times to those that can be expected: what a chip reaches of its full rates, fitted to measurements.

There are two kinds, and both are this project's own choice. ``Kernels`` add up what a rank runs in a pass, each kernel
by what was measured of its kind; ``Factors`` were fitted to whole passes, of which the paper has times and no kernels.
Either holds for what it was fitted to, and returns the reason where it does not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefold.plan.chip.chips import NVIDIA, catalogue
from prefold.plan.chip.hardware import Chip
from prefold.plan.cost.case import Case
from prefold.plan.cost.kernels import Matmul, all_reduces, attention, matmuls
from prefold.plan.cost.terms import Terms

# Of one, or of an array of them.
Seconds = Any

_FILE = Path(__file__).with_name("calibration.json")


class Calibration(Protocol):
    """Expected seconds of a pass, and the cases that they hold for."""

    @property
    def source(self) -> str:
        """The measurements that it was fitted to."""

    def beyond(self, case: Case) -> str:
        """Return why it does not hold for a case; empty where it does."""

    def pass_seconds(self, case: Case, terms: Terms) -> float:
        """Return the seconds that a pass can be expected to take."""


def _overlapped(parts: NDArray[Any], overlap: float) -> Seconds:
    """Return the p-norm over the first axis: the sum of parts at 1, and nearer to the largest as p grows."""
    largest = parts.max(axis=0)
    return largest * ((parts / largest) ** overlap).sum(axis=0) ** (1 / overlap)


@dataclass(frozen=True)
class Factors:
    """What a chip reaches of its rates in whole passes.

        seconds = step + layer * layers - call * gone + start * phases
                  + (arithmetic^p + memory^p + communication^p)^(1/p)

    each term divided by what is reached of its rate. An accelerator works while its host calls: there the longer counts
    of what comes before ``start`` and of all the rest. With p = 1 nothing overlaps and the terms add up; as p grows all
    of it does, and the largest alone remains: the two bounds of an ideal estimate.

    Attributes:
        arithmetic: share of peak operations per second.
        memory: share of memory bandwidth.
        links: share of link bandwidth.
        start: seconds for each start of a collective.
        overlap: p, 1 or more.
        step: seconds that every pass costs besides; 0 where that was not measured.
        layer: seconds that every layer costs besides.
        call: seconds of these for each called module; a fold calls fewer.
        ahead: calls run ahead of the device, so that the longer of both counts and not their sum.
        chips: fewest and most that it holds for.
    """

    arithmetic: float
    memory: float
    links: float
    start: float
    overlap: float
    source: str = ""
    step: float = 0.0
    layer: float = 0.0
    call: float = 0.0
    ahead: bool = False
    chips: tuple[int, int] = (1, 1 << 30)

    def beyond(self, case: Case) -> str:
        """Return why it does not hold for a case; empty where it does."""
        low, high = self.chips
        return "" if low <= case.mesh.chips <= high else f"fitted to {low} to {high} chips"

    def pass_seconds(self, case: Case, terms: Terms) -> float:
        """Return the seconds that a pass can be expected to take."""
        return self.seconds(terms)

    def seconds(self, terms: Terms) -> float:
        """Return the same by the terms alone."""
        parts = np.array(
            [
                terms.arithmetic / self.arithmetic,
                terms.memory / self.memory,
                terms.communication / self.links,
                terms.link_rows,
            ]
        )
        largest = parts.max()
        if not largest or largest == np.inf:
            return float(largest)
        overlapped = float(_overlapped(parts, self.overlap))
        calls = self.step + self.layer * terms.layers - self.call * terms.gone
        device = self.start * terms.phases + overlapped
        return float(max(calls, device) if self.ahead else calls + device)


@dataclass(frozen=True)
class Kernel:
    """What kernels of one kind reach.

        seconds = start + ((bytes / memory)^p + (operations / arithmetic)^p)^(1/p) + passes * bytes of activations

    Attributes:
        start: seconds of each.
        memory: share of memory bandwidth.
        arithmetic: share of peak operations per second.
        overlap: p.
        passes: over the activations: rounding them to the weights' type, or adding up parts of a split sequence.
    """

    start: float
    memory: float
    arithmetic: float
    overlap: float
    passes: float = 0.0

    def seconds(self, moved: Seconds, computed: Seconds, activations: Seconds = 0.0) -> Seconds:
        """Return the seconds of one, of those that its bytes, operations and activations take at full rates."""
        parts = np.array([moved / self.memory, computed / self.arithmetic])
        return self.start + _overlapped(parts, self.overlap) + self.passes * activations


@dataclass(frozen=True)
class AllReduce:
    """What all-reduces within a node reach: ``start + rank * (ranks - 1)`` seconds, and a share of link bandwidth."""

    start: float
    rank: float
    links: float

    def seconds(self, ranks: int, amount: float, chip: Chip) -> float:
        """Return the seconds of one, of which each rank sends 2 (ranks - 1) / ranks of its bytes."""
        sent = 2 * (ranks - 1) / ranks * amount
        return self.start + self.rank * (ranks - 1) + sent / chip.link_bandwidth / self.links


@dataclass(frozen=True)
class Kernels:
    """What a chip reaches in single kernels, of which a pass under tensor parallelism is the sum.

    Attributes:
        products: by the type that they run in; another one takes those of 16 bits.
        experts: seconds of experts' products over those of as large others; of them no kernels were measured.
        chips: that were measured.
        ranks: most that an all-reduce was measured over.
        tokens: most rows of a product.
        keys: most that attention read: of all sequences in a decode step, of one in a prefill.
    """

    products: dict[str, Kernel]
    decode: Kernel
    prefill: Kernel
    all_reduce: AllReduce
    experts: float
    chips: tuple[str, ...]
    ranks: int
    tokens: int
    keys: int
    source: str

    def beyond(self, case: Case) -> str:
        """Return why it does not hold for a case; empty where it does."""
        ranks, workload = case.mesh.chips, case.workload
        if ranks > min(self.ranks, case.chip.node):
            return f"fitted to {min(self.ranks, case.chip.node)} chips of one node and fewer"
        if not case.is_tensor_parallel:
            return "fitted to tensor parallelism: 1d-ws, attention by head, and as many heads on each chip"
        if workload.tokens > self.tokens:
            return f"fitted to {self.tokens:,} tokens per pass and fewer"
        keys = workload.context * (workload.batch if workload.phase == "decode" else 1)
        return f"fitted to {self.keys:,} cached tokens and fewer" if keys > self.keys else ""

    def pass_seconds(self, case: Case, terms: Terms) -> float:
        """Return the seconds that a pass can be expected to take; rows of a table come on top."""
        count, amount = all_reduces(case)
        sent = count * self.all_reduce.seconds(case.mesh.chips, amount, case.chip) if count else 0
        products = sum(each.count * self._product(each, case.chip) for each in matmuls(case))
        rows = terms.rows + terms.link_rows if case.fold else 0
        return products + self._attention(case) + sent + rows

    def _product(self, matmul: Matmul, chip: Chip) -> float:
        kernel = self.products.get(matmul.compute, self.products["bf16"])
        seconds = float(kernel.seconds(*matmul.at_full_rates(chip)))
        return kernel.start + self.experts * (seconds - kernel.start) if matmul.experts else seconds

    def _attention(self, case: Case) -> float:
        kernel = self.decode if case.workload.phase == "decode" else self.prefill
        layers, *at_full_rates = attention(case)
        return layers * float(kernel.seconds(*at_full_rates))


@dataclass(frozen=True)
class Engine:
    """What an engine makes of kernels, fitted to served workloads.

    Attributes:
        kernels: its kernels' seconds over those that were measured: graphs hide their starts.
        step: seconds that it adds to a step.
        accept: seconds until a request's prefill starts, beside those for which it waits for others.
        wait: prefills that it waits for, of each sequence.
    """

    kernels: float
    step: float
    accept: float
    wait: float
    source: str = ""


@cache
def _known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text())
    return found


@cache
def known_factors() -> dict[str, Factors]:
    """Return the factors that come with prefold, by the names of chips."""
    fields = Factors.__dataclass_fields__
    found = {name: {key: each[key] for key in each.keys() & fields} for name, each in _known()["passes"].items()}
    return {name: Factors(**each | {"chips": tuple(each["chips"])}) for name, each in found.items()}


@cache
def known_kernels() -> dict[str, Kernels]:
    """Return the kernels that come with prefold, by generations of chips."""
    return {name: _kernels(each) for name, each in _known()["kernels"].items()}


def _kernels(table: dict[str, Any]) -> Kernels:
    parts = {"decode": Kernel, "prefill": Kernel, "all_reduce": AllReduce}
    nested: dict[str, Any] = {name: kind(**table[name]) for name, kind in parts.items()}
    products = {dtype: Kernel(**each) for dtype, each in table["products"].items()}
    return Kernels(**{**table, **nested, "products": products, "chips": tuple(table["chips"])})


@cache
def engines() -> dict[str, Engine]:
    """Return the engines that were fitted, by their names."""
    return {name: Engine(**each) for name, each in _known()["engines"].items()}


def calibrations_of(chip: Chip) -> tuple[Calibration, ...]:
    """Return those that are known of a chip, or of the nearest generation; empty where there is neither."""
    measured = catalogue().get(chip.name) == chip  # a chip of a file may have any name
    passes = known_factors().get(chip.name) if measured else None
    kernels = nearest(chip, known_kernels())
    if kernels and not (measured and chip.name in kernels.chips):
        source = f"predicted from its data sheet by what {' and '.join(kernels.chips)} reach: {kernels.source}"
        kernels = replace(kernels, source=source)
    return tuple(each for each in (passes, kernels) if each)


def nearest(chip: Chip, kernels: Mapping[str, Kernels]) -> Kernels | None:
    """Return the kernels of the generation nearest to a chip's, the newer one of two; None for other families."""
    if chip.generation not in NVIDIA:
        return None
    place = NVIDIA.index(chip.generation)
    return kernels[min(reversed([*kernels]), key=lambda name: abs(NVIDIA.index(name) - place))]
