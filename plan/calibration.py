"""From ideal times to those that can be expected: what a chip reaches of its full rates, fitted to measurements.

The paper never puts compute, memory and communication together. This file does, and it is this project's own choice:

    seconds = step + layer * layers - call * gone + start * phases + (arithmetic^p + memory^p + communication^p)^(1/p)

each term divided by what is reached of its rate. An accelerator works while its host calls: there the longer counts of
what comes before ``start`` and of all the rest. With p = 1 nothing overlaps and the terms add up; as p grows all of it
does, and the largest alone remains: the two bounds of an ideal estimate.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from prefold.plan.cost.terms import Terms

_FILE = Path(__file__).with_name("calibration.json")


@dataclass(frozen=True)
class Factors:
    """What a chip reaches of its rates, as fitted to ``source``.

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

    def seconds(self, terms: Terms) -> float:
        """Seconds that a pass can be expected to take."""
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
        overlapped = largest * float(((parts / largest) ** self.overlap).sum()) ** (1 / self.overlap)
        calls = self.step + self.layer * terms.layers - self.call * terms.gone
        device = self.start * terms.phases + overlapped
        return float(max(calls, device) if self.ahead else calls + device)


@cache
def known_factors() -> dict[str, Factors]:
    """Return the factors that come with prefold, by the names of chips."""
    found = json.loads(_FILE.read_text())
    fields = Factors.__dataclass_fields__
    return {name: Factors(**{key: each[key] for key in each.keys() & fields}) for name, each in found.items()}


def factors_of(chip: str) -> Factors | None:
    """Return a chip's factors; None for a chip without measurements."""
    return known_factors().get(chip)
