"""Which tensor of a checkpoint becomes which parameter of the model.

transformers renames and joins tensors while it loads them; its own rules are asked, so that tensors can pass
through under the names that the source gave them.
"""

import re

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from prefold.convert.checkpoint.safetensors_file import Entry
from prefold.convert.errors import BrokenCheckpoint


def live_names(model: PreTrainedModel, entries: dict[str, Entry]) -> dict[str, str]:
    """Map every tensor's name to the parameter that it is loaded into, or the first of several.

    ``model`` may be on the meta device. Tensors that the model does not want map to names that it lacks.

    Raises:
        BrokenCheckpoint: a parameter has no tensor, or one of another shape.
    """
    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    state = model.state_dict()
    live: dict[str, str] = {}
    joined = set[str]()
    for name, entry in entries.items():
        live[name], pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            joined.add(live[name])
        elif live[name] in state and list(state[live[name]].shape) != entry.shape and not _is_packed(entry, model):
            raise BrokenCheckpoint(f"{name}: has shape {entry.shape}, the config says {list(state[live[name]].shape)}")
    if not joined:  # else transformers itself checks
        _require_all(model, set(live.values()))
    return live


def _is_quantized(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "quantization_config", None))


def _is_packed(entry: Entry, model: PreTrainedModel) -> bool:
    """Return whether a tensor may hold several small numbers of a parameter in one."""
    return _is_quantized(model) and entry.dtype not in ("F16", "BF16", "F32", "F64")


def _require_all(model: PreTrainedModel, found: set[str]) -> None:
    """Require a tensor for every parameter: one of tied ones, none of those that the model makes itself."""
    modules = {name.rpartition(".")[0] for name in found} if _is_quantized(model) else set()
    made = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or []]
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    for names in aliases.values():
        there = found & set(names) or modules & {name.rpartition(".")[0] for name in names}
        if not there and not any(each.search(names[0]) for each in made):
            raise BrokenCheckpoint(f"{names[0]}: the checkpoint has no such tensor")
