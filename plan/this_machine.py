"""This machine as a chip: its rates, measured in a few seconds with torch, and kept for the next time."""

import json
import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prefold.common.errors import UsageError
from prefold.plan.calibration import Factors
from prefold.plan.chip.hardware import Chip

if TYPE_CHECKING:
    from prefold.plan.chip.rates import Rates

THIS = "this"
# Of operations that run side by side the longest alone counts: one product reads and multiplies at the same time.
_OVERLAP = 8.0


def this_chip(*, refresh: bool = False) -> tuple[Chip, Factors]:
    """Return this machine as a chip, with its factors; ``UsageError`` without torch or transformers to measure with."""
    for needed in ("torch", "transformers"):
        if find_spec(needed) is None:
            raise UsageError(f"--hardware this: {needed} measures it, and is not installed")
    from prefold.plan.chip.rates import measure_rates

    file = _cache()
    rates = None if refresh else _known(file)
    if rates is None:
        rates = measure_rates()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(rates), indent=2) + "\n")
    return _chip(rates), _factors(rates)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "prefold" / "this-machine.json"


def _known(file: Path) -> "Rates | None":
    """Return the rates of an earlier run on the same device, torch and threads."""
    from prefold.plan.chip.rates import Rates, here

    try:
        rates = Rates(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return rates if (rates.device, rates.torch, rates.threads) == here() else None


def _chip(rates: "Rates") -> Chip:
    figures = ("peak", "memory", "memory_bandwidth", "host_bandwidth", "disk_bandwidth")
    told = f"measured on this machine: {rates.device}, torch {rates.torch}, {rates.threads} threads"
    return Chip(
        name=THIS,
        peak={"bf16": rates.bf16, "fp32": rates.fp32},
        memory_bytes=rates.memory_bytes,
        memory_bandwidth=rates.memory_bandwidth,
        link_bandwidth=0,
        host_bandwidth=rates.host_bandwidth,
        disk_bandwidth=rates.disk_bandwidth,
        axes={},
        source=dict.fromkeys(figures, told),
        node=1,
        note=_busy(rates) if rates.busy else "",
    )


def _busy(rates: "Rates") -> str:
    load = f"load {rates.load:.1f} on {rates.cores} core{'s' if rates.cores > 1 else ''}"
    return f"the machine was busy when it was measured ({load}): an idle one is faster; --refresh measures again"


def _factors(rates: "Rates") -> Factors:
    source = f"what transformers reaches on this machine, with torch {rates.torch}"
    calls = (rates.step, rates.layer, rates.call)
    return Factors(1, rates.memory_share, 1, 0, _OVERLAP, source, *calls, ahead=rates.device != "cpu")
