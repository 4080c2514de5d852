"""The rates of this machine, measured in a few seconds with torch and transformers.

What is measured is what a decode step is made of: products of one token with large weights, products of many tokens,
and the steps of four small models. Between two of them that read more than a cache holds, wide layers and narrow ones,
lies what a model reaches of the memory's bandwidth and what a layer costs besides; between two whose weights take no
time, what a step costs without layers.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

# More than any processor's cache holds, in 16 bits; and a product large enough to reach the highest rate.
_ROWS, _WIDTH, _SQUARE = 32768, 4096, 2048
_ROUNDS, _STEPS = 9, 8
# A table's rows: how many are read of a file of how many, and bytes of each.
_READ, _FILE_ROWS, _ROW = 256, 8192, 16384
# Of a core, that other processes may take before a machine is busy.
_BUSY = 0.5
# Values of a layer without biases: 4 width^2 in attention, 8 in the FFN.
_MATRICES = 12
# Modules that a fold leaves out of a layer of the small models: as ``fold.modules_gone`` counts them.
_GONE = 7


class _Small(NamedTuple):
    """A small model; ``folded``: the projections of its first layer are look-ups."""

    layers: int
    width: int
    folded: bool = False

    @property
    def layer_bytes(self) -> int:
        return _MATRICES * self.width**2 * 2


_FEW, _MANY, _FOLDED = _Small(2, 64), _Small(10, 64), _Small(10, 64, folded=True)
_NARROW, _WIDE = _Small(24, 384), _Small(6, 1024)


@dataclass(frozen=True)
class Rates:
    """The measured rates of a device: operations and bytes per second, and seconds.

    Attributes:
        memory_share: of the memory's bandwidth, that the layers of a model reach.
        disk_bandwidth: of random reads of rows.
        step: of a decode step without layers.
        layer: that every layer adds besides the reading of its weights.
        call: of these, for each module that is called.
        load: processes that ran or waited before, on average of a minute; 0 where the system does not count them.
        cores: of the machine.
    """

    device: str
    torch: str
    threads: int
    bf16: float
    fp32: float
    memory_bytes: float
    memory_bandwidth: float
    memory_share: float
    host_bandwidth: float
    disk_bandwidth: float
    step: float
    layer: float
    call: float
    load: float = 0.0
    cores: int = 0

    @property
    def busy(self) -> bool:
        """Whether other work took part of the machine, so that an idle one is faster."""
        return self.load > _BUSY * max(1, self.cores)


def here() -> tuple[str, str, int]:
    """Return the measured device, torch's version, and its threads."""
    return str(_device()), str(torch.__version__), torch.get_num_threads()


@torch.inference_mode()
def measure_rates() -> Rates:
    """Return the rates of this machine."""
    load, device = _load(), _device()
    decode = _decode(device)
    return Rates(
        *here(),
        bf16=_operations(device, torch.bfloat16),
        fp32=_operations(device, torch.float32),
        memory_bytes=_memory_bytes(device),
        host_bandwidth=decode["memory_bandwidth"] if device.type == "cpu" else _host_bandwidth(device),
        disk_bandwidth=_disk_bandwidth(),
        **decode,
        load=load,
        cores=os.cpu_count() or 1,
    )


def _load() -> float:
    """Return the load average of the last minute; 0 where the system has none."""
    try:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    except OSError:
        return 0.0


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _decode(device: torch.device) -> dict[str, Any]:
    """Return the rates of a decode step; its parts are timed in turn, so that other load meets all alike."""
    runs = {small: _steps(device, small) for small in (_FEW, _MANY, _FOLDED, _NARROW, _WIDE)}
    weights = torch.full((_ROWS, _WIDTH), 0.01, dtype=torch.bfloat16, device=device)
    token = torch.ones(1, _WIDTH, dtype=torch.bfloat16, device=device)
    read = partial(torch.nn.functional.linear, token, weights)
    rounds = [
        ({small: _timed(device, run) / _STEPS for small, run in runs.items()}, _timed(device, read))
        for _ in range(_ROUNDS + 1)
    ][1:]
    seconds = {small: median(each[small] for each, _ in rounds) for small in runs}
    explained = _explained if device.type == "cpu" else _explained_ahead
    return explained(seconds, weights.nbytes / median(read for _, read in rounds))


def _explained(seconds: Mapping[_Small, float], bandwidth: float) -> dict[str, Any]:
    """Return the rates that explain the seconds of a step of each model; no share above 1, and nothing below 0."""
    calls = _explained_ahead(seconds, bandwidth)
    narrow, wide = ((seconds[small] - calls["step"]) / small.layers for small in (_NARROW, _WIDE))
    reached = (_WIDE.layer_bytes - _NARROW.layer_bytes) / (wide - narrow) if wide > narrow else bandwidth
    share = min(1.0, reached / bandwidth)
    layer = max(0.0, narrow - _NARROW.layer_bytes / (share * bandwidth))
    return calls | {"memory_share": share, "layer": layer}


def _explained_ahead(seconds: Mapping[_Small, float], bandwidth: float) -> dict[str, Any]:
    """Return the rates of a device that calls run ahead of: the smallest models' steps are calls alone."""
    layer = max(0.0, seconds[_MANY] - seconds[_FEW]) / (_MANY.layers - _FEW.layers)
    return {
        "memory_bandwidth": bandwidth,
        "memory_share": 1.0,
        "step": max(0.0, seconds[_FEW] - _FEW.layers * layer),
        "layer": layer,
        "call": max(0.0, seconds[_MANY] - seconds[_FOLDED]) / _GONE,
    }


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _operations(device: torch.device, dtype: torch.dtype) -> float:
    factor = torch.full((_SQUARE, _SQUARE), 0.01, dtype=dtype, device=device)
    seconds = [_timed(device, lambda: factor @ factor) for _ in range(_ROUNDS + 1)]
    return float(2 * _SQUARE**3 / median(seconds[1:]))


def _host_bandwidth(device: torch.device) -> float:
    there = torch.ones(_ROWS * _WIDTH, dtype=torch.uint8).pin_memory()
    seconds = [_timed(device, lambda: there.to(device, non_blocking=True)) for _ in range(_ROUNDS + 1)]
    return float(there.nbytes / median(seconds[1:]))


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float(torch.accelerator.get_memory_info()[1])


def _disk_bandwidth() -> float:
    """Read scattered rows of a file that the system was asked to forget, all asked for at once."""
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


def _steps(device: torch.device, small: _Small) -> Callable[[], None]:
    model = _model(device, small)
    if device.type == "cpu":
        _map_weights(model)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def run() -> None:
        cache = None
        for _ in range(_STEPS):
            cache = model(token, past_key_values=cache, use_cache=True).past_key_values

    return run


def _model(device: torch.device, small: _Small) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": small.width, "intermediate_size": 4 * small.width}
    config = AutoConfig.for_model("gpt_neox", num_hidden_layers=small.layers, num_attention_heads=4, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device).eval()
    if small.folded:
        first = model.gpt_neox.layers[0]
        first.input_layernorm = first.post_attention_layernorm = torch.nn.Identity()
        first.attention.query_key_value = _looked_up(device, 3 * small.width)
        first.mlp = _looked_up(device, small.width)
    return model


def _looked_up(device: torch.device, width: int) -> Any:
    table = torch.zeros(64, width, dtype=torch.bfloat16, device=device)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    found: Any = torch.nn.Identity()
    found.forward = lambda *_: torch.nn.functional.embedding(token, table)
    return found


def _map_weights(model: Any) -> None:
    """Move weights to a mapped file, as those of transformers on a CPU, which are slower to read."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    with tempfile.NamedTemporaryFile() as file:
        size = sum(weight.numel() for weight in weights)
        file.write(bytes(size * 2))
        file.flush()
        mapped = torch.from_file(file.name, shared=False, size=size, dtype=torch.bfloat16)
    for weight, place in zip(weights, mapped.split([weight.numel() for weight in weights]), strict=True):
        weight.data = place.view(weight.shape)
