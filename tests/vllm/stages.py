"""Run source and folded as two stages of a pipeline. Run by ``torchrun`` as ``stages.py FOLDER``.

vLLM's engine starts no pipeline on a CPU, but its loader does. So this is what an engine does around a model, without
a cache. Attention needs one: in its place stands a sum of queries, keys and values. Every rank leaves in FOLDER what it
saw, as ``seen-RANK.pt``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import get_pp_group, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader import get_model
from vllm.plugins import load_general_plugins
from vllm.sequence import IntermediateTensors

IDS = torch.arange(3, 40)


def attend(_: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *__: Any) -> torch.Tensor:
    groups = queries.shape[-1] // keys.shape[-1]
    return queries + keys.repeat(1, groups) - 2 * values.repeat(1, groups)


def config_of(folder: Path) -> VllmConfig:
    arguments = EngineArgs(model=str(folder), dtype="float32", enforce_eager=True, skip_tokenizer_init=True)
    return arguments.create_engine_config()


@torch.no_grad()
def run(model: Any) -> dict[str, torch.Tensor]:
    """Return what this stage hands on, ``[tokens, hidden]`` each; the last one, the logits of all tokens."""
    group, received = get_pp_group(), None
    if not group.is_first_rank:
        received = IntermediateTensors(group.recv_tensor_dict())
    given = model(IDS, torch.arange(len(IDS)), intermediate_tensors=received)
    if group.is_last_rank:
        return {"logits": model.compute_logits(given)}
    group.send_tensor_dict(given.tensors)
    return given.tensors


def main(folder: Path) -> None:
    load_general_plugins()
    torch.accelerator.empty_cache = lambda: None  # as the worker of vLLM's CPU build does
    Attention.forward = attend
    seen = {}
    for side in ("source", "folded"):
        config = config_of(folder / side)
        with set_current_vllm_config(config), set_forward_context(None, config, num_tokens=len(IDS)):
            if not torch.distributed.is_initialized():
                init_distributed_environment(backend="gloo")
                initialize_model_parallel(pipeline_model_parallel_size=2)
            model = get_model(vllm_config=config)
            seen[side] = {"weights": {name for name, _ in model.named_parameters()}, "given": run(model)}
    torch.save(seen, folder / f"seen-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
