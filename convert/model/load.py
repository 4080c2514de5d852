"""The config object and the model class of a checkpoint, as transformers chooses them, and refusals by both."""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto

from prefold.convert.checkpoint.safetensors_file import DTYPES, names_in_order
from prefold.convert.checkpoint.side_files import code_reasons
from prefold.convert.checkpoint.source import Source
from prefold.convert.errors import ModelFailed, UnsupportedModel, model_code

# In which order a config that names no architecture is looked for; one that names one may be of any auto class.
_USUAL: tuple[Any, ...] = (
    modeling_auto.AutoModelForCausalLM,
    modeling_auto.AutoModelForMaskedLM,
    modeling_auto.AutoModelForSeq2SeqLM,
    modeling_auto.AutoModelForSpeechSeq2Seq,
    modeling_auto.AutoModel,
)
_OTHERS = [each for name, each in vars(modeling_auto).items() if name.startswith("AutoModel")]
_AUTO_CLASSES = dict.fromkeys([*_USUAL, *_OTHERS])
# A skeleton has all blocks, and a config a name for each label. Published models have some hundred blocks, and research
# went to a thousand.
_MOST = {"blocks": (("layer", "layers", "blocks", "depth"), 1_000), "labels": (("labels",), 100_000)}
_MOST["parts"] = (("experts", "groups", "group_num", "networks", "functions"), 10_000)
# Names that transformers gives to inputs which are no tokens.
_NOT_TEXT = re.compile("pixel|image|video|audio|input_features|input_values")


def load_config(source: Source, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the config; refuse a model that cannot be folded, with every reason."""
    reasons = _reasons(source.config, trust_remote_code=trust_remote_code)
    reasons += code_reasons(source, trust_remote_code=trust_remote_code)
    if reasons:
        raise UnsupportedModel(reasons)
    try:
        with model_code():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                source.config_path, trust_remote_code=trust_remote_code
            )
    except ModelFailed as failure:
        raise UnsupportedModel([f"transformers cannot read its config: {failure}"]) from failure
    return config


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _reasons(raw: dict[str, Any], *, trust_remote_code: bool) -> list[str]:
    reasons = []
    if "prefold" in raw:
        reasons.append("it is a folded checkpoint already")
    if "model_type" not in raw and "auto_map" not in raw:
        reasons.append("its config.json names no model_type")
    reasons += [f"its config.json asks for {count:,} {what} ({name})" for name, count, what in _beyond(raw)]
    if not isinstance(raw.get("auto_map", {}), dict):
        reasons.append("its config.json has an auto_map that is no object")
    if not _are_names(named := raw.get("architectures") or []):
        reasons.append(f"its config.json names no classes as architectures: {named!r:.80}")
    if "auto_map" in raw and not trust_remote_code and not _is_known(raw):
        reasons.append("it brings its own code: read that, then pass --trust-remote-code to run it")
    return reasons


def _beyond(raw: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield the numbers of blocks, labels and parts in a config that are out of all proportion."""
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from _beyond(value)
        for what, (endings, most) in _MOST.items() if isinstance(value, int) else ():
            if name.endswith(endings) and value > most:
                yield name, value, what


def _is_known(raw: dict[str, Any]) -> bool:
    """Return whether transformers itself has the type; a type that a program registered is not its own."""
    return str(raw.get("model_type")) in CONFIG_MAPPING._mapping


@dataclass(frozen=True)
class ResolvedModel:
    """The model class of a checkpoint, and the name of the auto class that finds it."""

    model_class: type[PreTrainedModel]
    auto_class: str

    @property
    def other_inputs(self) -> list[str]:
        """Arguments of ``forward`` that replace tokens: images, sounds."""
        if self.model_class.main_input_name != "input_ids":
            return []  # an encoder takes those; the decoder behind it takes tokens alone
        return [name for name in inspect.signature(self.model_class.forward).parameters if _NOT_TEXT.search(name)]


def require_text(resolved: ResolvedModel, *, text_only: bool) -> None:
    """Refuse a model that takes more than tokens, unless it will be given tokens alone."""
    others = ", ".join(resolved.other_inputs)
    if others and not text_only:
        raise UnsupportedModel(
            [
                f"it takes {others} beside text: where an image or a sound replaces the embedding"
                " of a token, the token's row would be wrong; --text-only folds it for token ids alone"
            ]
        )


def resolve_model(source: Source, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ResolvedModel:
    """Return the class that ``architectures`` names, or else the first that an auto class takes for a config.

    Without trust no code of the source is asked, whatever class its config has come to be loaded as.

    Raises:
        UnsupportedModel: there is none.
    """
    own = _own_models(source, config) if trust_remote_code else []
    architectures = source.config.get("architectures") or []
    named = [each for each in _models(_AUTO_CLASSES, config) if each.model_class.__name__ in architectures]
    known = [name for name in architectures if hasattr(transformers, name)]  # others are of other programs
    for other in known if not (own or named) else []:
        raise UnsupportedModel([f"it is a {other}, which no auto class of transformers loads"])
    chosen = next(iter([*own, *named, *_models(_USUAL, config)]), None)
    if chosen is None:
        raise UnsupportedModel([f"{config.model_type} is not a language model or text encoder of transformers"])
    return chosen


def _models(autos: Iterable[Any], config: PreTrainedConfig) -> list[ResolvedModel]:
    return [ResolvedModel(each, auto.__name__) for auto in autos for each in _classes(auto, config)]


def base_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that ``AutoModel`` takes for a config of transformers' own."""
    return next(iter(_classes(modeling_auto.AutoModel, config)), None)


def auto_classes(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> list[str]:
    """Return the names of all auto classes that load a config as ``model_class``."""
    return [auto.__name__ for auto in _AUTO_CLASSES if model_class in _classes(auto, config)]


def loaded_by(auto_class: Any, config: PreTrainedConfig) -> str | None:
    """Return the name of the class that an auto class loads a checkpoint as; None where it loads none."""
    named = getattr(config, "auto_map", {}).get(auto_class.__name__)
    if named:
        return str(named).rpartition(".")[2]
    found = _classes(auto_class, config)
    architectures = getattr(config, "architectures", None) or []
    chosen = next((each for each in found if each.__name__ in architectures), next(iter(found), None))
    return chosen.__name__ if chosen else None


def _own_models(source: Source, config: PreTrainedConfig) -> list[ResolvedModel]:
    """Return the classes that a source's own code has for its config."""
    if type(config).__module__.startswith("transformers."):
        return []
    references = getattr(config, "auto_map", {})
    names = [auto.__name__ for auto in _AUTO_CLASSES if auto.__name__ in references]
    return [ResolvedModel(get_class_from_dynamic_module(references[name], source.folder), name) for name in names]


def _classes(auto_class: Any, config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    found: Any = auto_class._model_mapping.get(type(config), [])
    return list(found) if isinstance(found, tuple | list) else [found]


def resolve_dtype(source: Source, config: PreTrainedConfig, asked: str | None) -> torch.dtype:
    """Return the type that the model runs in: the one asked for, the config's, or that of its first file's weights."""
    if asked is not None:
        return getattr(torch, asked)  # type: ignore[no-any-return]
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    first = next(iter(source.entries.values()), None)
    for name in names_in_order(first.file) if first else ():
        entry = source.entries[name]
        if entry.is_floating_point and DTYPES[entry.dtype].itemsize > 1:  # smaller ones are quantized
            return DTYPES[entry.dtype]
    return torch.float32


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Name the parameters and buffers that transformers loads in float32, though the model be of ``dtype``."""
    plan = model._get_dtype_plan(dtype)
    pattern = re.compile("|".join(f"(?:{name.replace('*', '.*')})" for name in plan))
    return {name for name in model.state_dict() if plan and pattern.search(name)}
