"""A plan in the words of engines: the command that serves a model so."""

import re
import shlex
from pathlib import Path

from prefold.plan.cost.case import Case
from prefold.plan.cost.memory import memory_of

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def commands(case: Case, positions: int | None = None) -> dict[str, str]:
    """Return the command of each engine; empty for a layout, or a type of KV cache, that no engine has.

    ``positions``: of a request; those of the pass if None.
    """
    workload = case.workload
    if not case.is_tensor_parallel or workload.kv not in ("bf16", "fp16", "fp8"):
        return {}
    model, batch, length = _model(case), workload.batch, positions or workload.positions
    ranks, share, narrow = case.mesh.chips, workload.memory_share, workload.kv == "fp8"
    online, needed = _quantized(case)
    vllm = (
        f"vllm serve {model} --tensor-parallel-size {ranks}{' --kv-cache-dtype fp8' if narrow else ''}{online}"
        f" --max-num-seqs {batch} --max-model-len {length} --gpu-memory-utilization {share:g}{needed}"
    )
    sglang = (
        f"python -m sglang.launch_server --model-path {model} --tp {ranks}"
        f"{' --kv-cache-dtype fp8_e4m3' if narrow else ''}{online}"
        f" --max-running-requests {batch} --context-length {length} --mem-fraction-static {share:g}{needed}"
    )
    tensorrt = (
        f"trtllm-serve {model} --tp_size {ranks} --max_batch_size {batch} --max_seq_len {length}"
        f" --kv_cache_free_gpu_memory_fraction {_free_share(case):.2f}{' --config kv.yaml' if narrow else ''}"
    )
    notes = ["kv.yaml has kv_cache_config: {dtype: fp8}"] if narrow else []
    notes += [f"a checkpoint with weights in {workload.weights}"] if online or needed else []
    tensorrt += f"  # {'; '.join(notes)}" if notes else ""
    return {"vllm": vllm, "sglang": sglang, "tensorrt-llm": tensorrt}


def _model(case: Case) -> str:
    """Return a hub id, from the source of a preset, or a folder."""
    shape = case.shape
    if Path(shape.name).name == "config.json":
        return shlex.quote(str(Path(shape.name).parent))
    found = _HUB.search(shape.source) if "/" not in shape.name else None
    return shlex.quote(found[0] if found else shape.name)


def _quantized(case: Case) -> tuple[str, str]:
    """Return the option by which an engine makes the weights' type as it loads, or else the checkpoint it needs."""
    weights = case.workload.weights
    if weights in (case.shape.stored, "bf16", "fp16"):
        return "", ""
    return (" --quantization fp8", "") if weights == "fp8" else ("", f"  # a checkpoint with weights in {weights}")


def _free_share(case: Case) -> float:
    """Return the share of what weights leave free that TensorRT-LLM gives to the KV cache."""
    memory = memory_of(case)
    free = case.chip.memory_bytes - memory.weights
    return max(0.0, memory.available - memory.weights) / free if free > 0 else 0.0
