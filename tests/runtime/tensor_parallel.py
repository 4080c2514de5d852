"""Run checkpoints on several ranks. Run by ``torchrun`` as ``tensor_parallel.py FOLDER CASE...``.

FOLDER holds the token ids; a case is a folder of it with the checkpoints ``source`` and ``folded``. Every rank leaves
there what it saw, as ``seen-RANK.pt``. What runs are the modules in the checkpoints' folders.
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor.debug import CommDebugMode
from transformers import AutoModelForCausalLM
from transformers import logging as transformers_logging
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, ColwiseParallel

# Known to transformers once it is registered, as any program may, and to nobody else.
OWN_STYLE = "of_its_own"


def load(folder: Path, plan: Any = "auto", **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", distributed_config=DistributedConfig(tp_plan=plan), **options
    )


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    defaults = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, repetition_penalty=3.0, **(defaults | options))


def columns_of(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what this rank has of every column."""
    return outputs(model, [each["module"] for fold in model.config.prefold["folds"] for each in fold["columns"]], ids)


def outputs(model: Any, names: list[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what modules give in a pass, by their names."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        found[name] = output.clone()

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return found


def run(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    with CommDebugMode() as sent:
        logits = model(input_ids=ids, attention_mask=mask).logits
    return {
        "logits": logits,
        "sent": sent.get_total_counts(),
        "tokens": generate(model, ids, mask),
        "static": generate(model, ids, mask, cache_implementation="static"),
    }


def sharded(model: Any) -> set[str]:
    """Return the names of parameters of which this rank has a part."""
    return {name for name, each in model.named_parameters() if hasattr(each, "placements") and not whole(each)}


def whole(parameter: Any) -> bool:
    return all(placement.is_replicate() for placement in parameter.placements)


def case(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    folded = load(folder / "folded")
    told = {"columns": columns_of(folded, ids), "sharded": sharded(folded)}
    return told | {"source": run(load(folder / "source"), ids, mask), "folded": run(folded, ids, mask)}


def placed(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    models = {place: load(folder / "folded", prefold_placement=place) for place in ("device", "host", "disk")}
    return {place: model(input_ids=ids, attention_mask=mask).logits for place, model in models.items()}


def saved(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    model = load(folder / "folded")
    model.save_pretrained(folder / "again")
    again = load(folder / "again")
    return {name: each(input_ids=ids, attention_mask=mask).logits for name, each in (("one", model), ("two", again))}


def unknown_style(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Ask for a style that prefold cannot know."""
    ALL_PARALLEL_STYLES.register(OWN_STYLE, ColwiseParallel())
    plan = {f"model.layers.*.self_attn.{name}_proj": OWN_STYLE for name in "qkv"}
    said: list[str] = []
    transformers_logging.get_logger("transformers.prefold").warning_once = said.append
    source, folded = load(folder / "source", plan), load(folder / "folded", plan)
    told = {"sharded": sharded(folded), "columns": columns_of(folded, ids), "said": said}
    return told | {"source": run(source, ids, mask), "folded": run(folded, ids, mask)}


def main(folder: Path, cases: list[str]) -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ids, mask = torch.load(folder / "ids.pt")
    seen = {}
    with torch.no_grad():
        for each in cases:
            what, _, name = each.partition(":")
            seen[each] = globals()[what](folder / name, ids, mask)
    torch.save(seen, folder / f"seen-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())
        main(Path(sys.argv[1]), sys.argv[2:])
