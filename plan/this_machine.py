"""This machine as a chip: its rates, measured in a few seconds with torch, and kept for the next time.

What is measured is what a step is made of: products of one token with large weights, products of many, and the layers
of a model so small that nothing but the calls of its operations takes time. So these rates are reached, and the factors
that go with them are 1.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from prefold.plan.calibration import Factors
from prefold.plan.errors import PlanError
from prefold.plan.hardware import Chip

NAME = "this"
# More than any processor's cache holds, in 16 bits; and a product large enough to reach the highest rate.
_ROWS, _WIDTH, _SQUARE = 32768, 4096, 2048
_TIMES, _FEW_LAYERS, _MANY_LAYERS, _STEPS = 7, 2, 10, 20
# A table's rows: how many are read of a file of how many, and bytes of each.
_READ, _FILE_ROWS, _ROW = 256, 8192, 16384
# Of operations that run side by side the longest alone counts: one product reads and multiplies at the same time.
_OVERLAP = 8.0


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        device: that ran it.
        torch: its version.
        threads: that it used.
        bf16: operations per second.
        fp32: operations per second.
        memory_bytes: of the device.
        memory_bandwidth: bytes per second.
        host_bandwidth: bytes per second.
        disk_bandwidth: bytes per second of random reads of rows.
        step: seconds of a decode step without layers.
        layer: seconds that every layer adds, whatever its size.
    """

    device: str
    torch: str
    threads: int
    bf16: float
    fp32: float
    memory_bytes: float
    memory_bandwidth: float
    host_bandwidth: float
    disk_bandwidth: float
    step: float
    layer: float


def this_machine(*, refresh: bool = False) -> tuple[Chip, Factors]:
    """Return this machine as a chip, and what a transformers model reaches of its rates.

    Raises:
        PlanError: torch or transformers is not there to measure with.
    """
    try:
        import torch
    except ImportError as error:
        raise PlanError("--hardware this: torch measures it, and is not installed") from error
    file = _cache()
    known = None if refresh else _known(file, torch)
    rates = known or _measure(torch)
    if known is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(rates), indent=2) + "\n")
    return _chip(rates), _factors(rates)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "prefold" / "this-machine.json"


def _known(file: Path, torch: Any) -> Rates | None:
    """Return what an earlier run measured, if it ran as this one would."""
    try:
        rates = Rates(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    now = (str(_device(torch)), str(torch.__version__), torch.get_num_threads())
    return rates if (rates.device, rates.torch, rates.threads) == now else None


def _device(torch: Any) -> Any:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _chip(rates: Rates) -> Chip:
    figures = ("peak", "memory", "memory_bandwidth", "host_bandwidth", "disk_bandwidth")
    told = f"measured on this machine: {rates.device}, torch {rates.torch}, {rates.threads} threads"
    return Chip(
        name=NAME,
        peak={"bf16": rates.bf16, "fp32": rates.fp32},
        memory_bytes=rates.memory_bytes,
        memory_bandwidth=rates.memory_bandwidth,
        link_bandwidth=0,
        host_bandwidth=rates.host_bandwidth,
        disk_bandwidth=rates.disk_bandwidth,
        axes={},
        source=dict.fromkeys(figures, told),
    )


def _factors(rates: Rates) -> Factors:
    source = f"what transformers reaches on this machine, with torch {rates.torch}"
    return Factors(1, 1, 1, 0, _OVERLAP, source, step=rates.step, layer=rates.layer)


def _measure(torch: Any) -> Rates:
    device = _device(torch)
    with torch.inference_mode():
        few, many = (_decode_seconds(torch, device, layers) for layers in (_FEW_LAYERS, _MANY_LAYERS))
        layer = max(0.0, (many - few) / (_MANY_LAYERS - _FEW_LAYERS))
        bandwidth = _memory_bandwidth(torch, device)
        return Rates(
            device=str(device),
            torch=str(torch.__version__),
            threads=torch.get_num_threads(),
            bf16=_operations(torch, device, torch.bfloat16),
            fp32=_operations(torch, device, torch.float32),
            memory_bytes=_memory_bytes(torch, device),
            memory_bandwidth=bandwidth,
            host_bandwidth=bandwidth if device.type == "cpu" else _host_bandwidth(torch, device),
            disk_bandwidth=_disk_bandwidth(),
            step=max(0.0, few - _FEW_LAYERS * layer),
            layer=layer,
        )


def _seconds(torch: Any, device: Any, work: Callable[[], Any]) -> float:
    """Return the median of some runs, each up to the moment at which the device is done; the first does not count."""
    found = []
    for _ in range(_TIMES + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def _memory_bandwidth(torch: Any, device: Any) -> float:
    weights = torch.full((_ROWS, _WIDTH), 0.01, dtype=torch.bfloat16, device=device)
    token = torch.ones(1, _WIDTH, dtype=torch.bfloat16, device=device)
    seconds = _seconds(torch, device, lambda: torch.nn.functional.linear(token, weights))
    return float(weights.nbytes / seconds)


def _operations(torch: Any, device: Any, dtype: Any) -> float:
    factor = torch.full((_SQUARE, _SQUARE), 0.01, dtype=dtype, device=device)
    return float(2 * _SQUARE**3 / _seconds(torch, device, lambda: factor @ factor))


def _host_bandwidth(torch: Any, device: Any) -> float:
    there = torch.ones(_ROWS * _WIDTH, dtype=torch.uint8).pin_memory()
    return float(there.nbytes / _seconds(torch, device, lambda: there.to(device, non_blocking=True)))


def _memory_bytes(torch: Any, device: Any) -> float:
    if device.type == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float(torch.accelerator.get_memory_info()[1])


def _disk_bandwidth() -> float:
    """Read rows here and there of a file that the system was asked to forget, all asked for at once."""
    with tempfile.TemporaryFile(dir=Path.cwd() if os.access(Path.cwd(), os.W_OK) else None) as file:
        file.truncate(0)
        for _ in range(_FILE_ROWS):
            file.write(os.urandom(_ROW))
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rows = [7919 * number % _FILE_ROWS * _ROW for number in range(_READ)]
        start = time.perf_counter()
        for row in rows:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), row, _ROW, os.POSIX_FADV_WILLNEED)
        for row in rows:
            os.pread(file.fileno(), _ROW, row)
        return _READ * _ROW / (time.perf_counter() - start)


def _decode_seconds(torch: Any, device: Any, layers: int) -> float:
    """Return the seconds of a decode step of a model whose weights take no time."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise PlanError("--hardware this: transformers runs what is measured, and is not installed") from error
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    config = AutoConfig.for_model("gpt_neox", num_hidden_layers=layers, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device).eval()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def steps() -> None:
        cache = None
        for _ in range(_STEPS):
            cache = model(token, past_key_values=cache, use_cache=True).past_key_values

    return _seconds(torch, device, steps) / _STEPS
