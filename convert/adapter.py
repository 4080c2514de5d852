"""An adapter for the source: its part on folded modules goes into the table, the rest stays an adapter.

A folded module has no weights to adapt. What a LoRA adds to one is merged into the first layer before the table is
computed; what it adds to other modules is written as an adapter of its own, for the folded checkpoint.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.common.errors import UsageError
from prefold.convert.checkpoint.files import ADAPTER, own_file
from prefold.convert.checkpoint.safetensors_file import Entry, passed_through, read_header, write_file
from prefold.convert.checkpoint.source import read_json
from prefold.convert.errors import BrokenCheckpoint, ModelFailed, UnsupportedModel, model_code
from prefold.convert.fold.layout import Cut
from prefold.convert.model.inputs import find_sides
from prefold.convert.model.running import hooks, run_side, stop

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PICKLED = "adapter_model.bin"
# Keys by which its config chooses modules.
_CHOICE = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters",
           "trainable_token_indices")  # fmt: skip
# What merging rounds, as part of a module's largest output: one product more, and weights of 16 bits rounded again.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOKENS = 16


@dataclass(frozen=True)
class Adapter:
    """An adapter in peft's format: its ``adapter_config.json``, and its tensors by name."""

    folder: Path
    config: dict[str, Any]
    entries: dict[str, Entry]

    @property
    def modules(self) -> set[str]:
        """Names of the adapted modules, as the model has them."""
        return {_split(name)[0] for name in self.entries}

    def tensors_of(self, modules: list[str]) -> list[str]:
        """Return the names of the tensors that change one of ``modules`` or a part of one."""
        inside = tuple(f"{module}." for module in modules)
        return [name for name in self.entries if f"{_split(name)[0]}.".startswith(inside)]


def _split(tensor: str) -> tuple[str, str]:
    """Split a tensor's name into its module's and its part: ``q_proj``, ``lora_A.weight``."""
    name = tensor.removeprefix(PREFIX)
    found = re.fullmatch(r"(.+?)\.((?:lora_|base_layer\.|token_adapter\.).*)", name)
    return (found[1], found[2]) if found else (name.rpartition(".")[0], name.rpartition(".")[2])


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter without reading its tensors.

    Raises:
        UsageError: peft is not installed, or there is no adapter.
        UnsupportedModel: it is not a LoRA that can be merged, or its weights would have to be unpickled.
        BrokenCheckpoint: a file is not whole.
    """
    if find_spec("peft") is None:
        raise UsageError("--adapter needs peft: install prefold[adapters]")
    if not os.path.lexists(folder / ADAPTER):
        raise UsageError(f"{folder}: not an adapter: it has no {ADAPTER}")
    config = read_json(own_file(folder, ADAPTER))
    reasons = _reasons(folder, config)
    if reasons:
        raise UnsupportedModel(reasons)
    return Adapter(folder, config, read_header(own_file(folder, WEIGHTS)))


def _reasons(folder: Path, config: dict[str, Any]) -> list[str]:
    reasons = []
    if config.get("peft_type") != "LORA":
        reasons.append(f"{folder}: a {config.get('peft_type')} adapter: only a LoRA is merged into the first layer")
    if not isinstance(config.get("exclude_modules"), str | list | None):
        reasons.append(f"{folder}: its exclude_modules are neither an expression nor a list")
    if config.get("megatron_config"):
        reasons.append(f"{folder}: it is for Megatron (megatron_config), whose code peft would import by name")
    if "_niter_" in str(config.get("init_lora_weights")):
        reasons.append(f"{folder}: loading it draws random numbers (init_lora_weights), so its base is never the same")
    if config.get("layer_replication"):
        reasons.append(f"{folder}: it repeats layers (layer_replication), which cannot be merged")
    if config.get("alora_invocation_tokens"):
        reasons.append(f"{folder}: it wakes up at certain tokens (aLoRA), so a token's row would depend on others")
    if not os.path.lexists(folder / WEIGHTS):
        why = f", only {_PICKLED}, which may run code when it is opened" if (folder / _PICKLED).is_file() else ""
        reasons.append(f"{folder}: no {WEIGHTS}{why}")
    return reasons


def modules_in_tables(cuts: list[Cut]) -> list[str]:
    """Name the modules whose weights go into tables: those that fold, and those that stay beside a sum."""
    sums = [cut.sum for cut in cuts if cut.sum]
    beside = [each.module for sum_ in sums for each in sum_.look_ups] + [name for sum_ in sums for name in sum_.live]
    return [*(module for cut in cuts for module in cut.eliminated), *beside]


def check_adapter(folder: Path, model: PreTrainedModel, folded_modules: list[str]) -> Adapter:
    """Open an adapter, and refuse it by the names of modules if it cannot become part of a table.

    ``model`` is the source, which may be on the meta device.
    """
    adapter = open_adapter(folder)
    names = {name for name, _ in model.named_modules()}
    inside = adapter.tensors_of(folded_modules)
    reasons = [_unmergeable(name, names) for name in inside] + [_of_tied_head(adapter, model)]
    if not adapter.modules & names:
        reasons.append(f"{folder}: it adapts no module of {type(model).__name__}")
    found = list(dict.fromkeys(reason for reason in reasons if reason))
    if found:
        raise UnsupportedModel(found)
    return adapter


def _unmergeable(tensor: str, names: set[str]) -> str | None:
    module, part = _split(tensor)
    if module not in names:
        return f"{module}: the adapter changes it, and it folds, but the model has no module of that name"
    if part.startswith("lora_embedding_") or not part.startswith("lora_"):
        return (
            f"{module}: the adapter's {part} replaces or extends a folded module: only LoRA on a projection is merged"
        )
    return None


def _of_tied_head(adapter: Adapter, model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return None
    name = next(name for name, module in model.named_modules() if module is head)
    return f"{name}: the adapter changes it, and it is tied to the embedding" if name in adapter.modules else None


def merge_into_first_layer(model: PreTrainedModel, folder: Path, folded_modules: list[str]) -> PreTrainedModel:
    """Merge an adapter's part on folded modules into a loaded first layer, by peft's own arithmetic."""
    adapter = open_adapter(folder)
    names = adapter.tensors_of(folded_modules)
    if not names:
        return model
    modules = sorted({_split(name)[0] for name in names})
    config = adapter.config | dict.fromkeys(_CHOICE) | {"bias": "none", "target_modules": modules}
    with tempfile.TemporaryDirectory(prefix="prefold-") as scratch:
        _write(Path(scratch), config, {name: adapter.entries[name] for name in names})
        return merge_adapter(model, Path(scratch), partial(_require_tensors, adapter, names))


def merge_adapter(
    model: PreTrainedModel, folder: Path, loaded: Callable[[Any], None] = lambda _: None
) -> PreTrainedModel:
    """Merge a whole adapter into a model; ``loaded`` is called with the adapted model before.

    Raises:
        UnsupportedModel: peft does not merge it, or a merged module returns other values than the adapted one.
    """
    from peft import PeftModel  # an extra

    try:
        with model_code():
            adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        loaded(adapted)
        modules = sorted(open_adapter(folder).modules & {name for name, _ in model.named_modules()})
        live = _outputs(model, modules)
        with model_code():
            merged: PreTrainedModel = adapted.merge_and_unload()
    except ModelFailed as failure:
        raise UnsupportedModel([f"peft does not merge the adapter: {failure}"]) from failure
    _require_same(live, _outputs(merged, modules))
    return merged


def _require_tensors(adapter: Adapter, names: list[str], adapted: Any) -> None:
    """Require that peft loaded every tensor; it only warns of missing ones."""
    from peft import get_peft_model_state_dict

    taken: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name in names:
        tensor = adapter.entries[name].tensor()
        if name not in taken or not torch.equal(taken[name].cpu().to(tensor.dtype), tensor):
            raise BrokenCheckpoint(f"{name}: peft does not load it into the first layer")
    for name in sorted(taken.keys() - set(names)):
        raise BrokenCheckpoint(f"{name}: not in the adapter")


def _outputs(model: PreTrainedModel, modules: list[str]) -> dict[str, torch.Tensor]:
    """Run a few tokens and return the modules' outputs."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen.setdefault(name, output.detach().clone())
            if len(seen) == len(modules):
                stop()

        return hook

    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(min(_TOKENS, embedding.weight.shape[0]), device=model.device)[None]
    with hooks(model, {}, {name: keep(name) for name in modules}):
        for side in find_sides(model):
            run_side(model, side, ids)
    return seen


def _require_same(live: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> None:
    for name, output in live.items():
        error = (output.double() - merged[name].double()).abs().max()
        if not error <= _ROUNDING.get(output.dtype, 2**-5) * output.double().abs().max():
            raise UnsupportedModel([f"{name}: merged, the adapter says something else than it did before"])


def remaining_adapter(folder: Path, folded_modules: list[str], out: Path) -> bool:
    """Write an adapter's part on all other modules to ``out``; returns whether there is any.

    Tensors pass through byte for byte; the config names no base model, and excludes the folded modules.
    """
    adapter = open_adapter(folder)
    gone = adapter.tensors_of(folded_modules)
    kept = {name: entry for name, entry in adapter.entries.items() if name not in gone}
    if not kept:
        return False
    excluded = sorted({_split(name)[0] for name in gone})
    out.mkdir(parents=True)
    config = adapter.config | {"base_model_name_or_path": None}
    _write(out, config | {"exclude_modules": _excluded(config.get("exclude_modules"), excluded)}, kept)
    return True


def _excluded(before: str | list[str] | None, modules: list[str]) -> str | list[str] | None:
    if isinstance(before, str):  # an expression that has to match the whole name
        return "|".join([f"(?:{before})", *(re.escape(module) for module in modules)])
    return [*(before or []), *modules] or None


def _write(folder: Path, config: dict[str, Any], entries: dict[str, Entry]) -> None:
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n")
    write_file(folder / WEIGHTS, {name: passed_through(entry) for name, entry in entries.items()})
