"""A plan in the words of engines: the command that serves a model so."""

from prefold.plan.cost.case import Case

# Of weights in 16 bits, engines make 8 bits while they load; 4 bits come with the checkpoint.
_ONLINE = {"fp8": " --quantization fp8"}


def commands(case: Case) -> dict[str, str]:
    """Return the command of each engine; empty for a layout that no engine has.

    Engines have tensor parallelism: ``1d-ws``, attention by head.
    """
    if case.mesh.chips > 1 and (case.layout, case.sharding) != ("1d-ws", "head"):
        return {}
    workload, ranks, share = case.workload, case.mesh.chips, case.workload.memory_share
    batch, length = workload.batch, workload.positions
    quantized = "" if workload.weights == case.shape.stored else _ONLINE.get(workload.weights, "")
    narrow = workload.kv == "fp8"
    model = case.shape.name
    vllm = (
        f"vllm serve {model} --tensor-parallel-size {ranks}{' --kv-cache-dtype fp8' if narrow else ''}{quantized}"
        f" --max-num-seqs {batch} --max-model-len {length} --gpu-memory-utilization {share:g}"
    )
    sglang = (
        f"python -m sglang.launch_server --model-path {model} --tp {ranks}"
        f"{' --kv-cache-dtype fp8_e4m3' if narrow else ''}{quantized}"
        f" --max-running-requests {batch} --context-length {length} --mem-fraction-static {share:g}"
    )
    tensorrt = (
        f"trtllm-serve {model} --tp_size {ranks} --max_batch_size {batch} --max_seq_len {length}"
        f" --kv_cache_free_gpu_memory_fraction {share:g}"
        f"{' --config kv.yaml  # kv_cache_config: {dtype: fp8}' if narrow else ''}"
    )
    return {"vllm": vllm, "sglang": sglang, "tensorrt-llm": tensorrt}
