"""What transformers makes of a config: its config object, its model class, and whether they can be folded."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from prefold.convert.errors import UnsupportedModel
from prefold.convert.shards import DTYPES
from prefold.convert.source import Source

_AUTO = "AutoModelForCausalLM"


def load_config(source: Source, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the config and refuse, with every reason, what cannot be folded.

    Raises:
        UnsupportedModel: with one reason each.
    """
    reasons = _reasons(source.config, trust_remote_code=trust_remote_code)
    if reasons:
        raise UnsupportedModel(reasons)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.config_path, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UnsupportedModel([f"transformers cannot read its config: {_first_line(error)}"]) from error
    reasons = _config_reasons(config)
    if reasons:
        raise UnsupportedModel(reasons)
    return config


def _reasons(raw: dict[str, Any], *, trust_remote_code: bool) -> list[str]:
    reasons = []
    if "prefold" in raw:
        reasons.append("it is a folded checkpoint already")
    quantization = raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "an unnamed method")
        reasons.append(f"its weights are quantized ({method}): fold the unquantized checkpoint")
    if "model_type" not in raw and "auto_map" not in raw:
        reasons.append("its config.json names no model_type")
    if "auto_map" in raw and not trust_remote_code and not _is_known(raw):
        reasons.append("it brings its own code: read that, then pass --trust-remote-code to run it")
    return reasons


def _is_known(raw: dict[str, Any]) -> bool:
    return raw.get("model_type") in CONFIG_MAPPING


def _config_reasons(config: PreTrainedConfig) -> list[str]:
    reasons = []
    if config.get_text_config() is not config:
        reasons.append(
            f"{config.model_type} takes more than text: where an image or a sound replaces the embedding of a token,"
            " the token's row would be wrong; fold its text model alone"
        )
    if config.is_encoder_decoder:
        reasons.append(f"{config.model_type} is an encoder-decoder: prefold folds decoders so far")
    return reasons


def load_class(source: Source, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that ``AutoModelForCausalLM`` takes for a config.

    Raises:
        UnsupportedModel: there is none.
    """
    reference = getattr(config, "auto_map", {}).get(_AUTO)
    if reference and not type(config).__module__.startswith("transformers."):
        return get_class_from_dynamic_module(reference, source.folder)
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise UnsupportedModel([f"{config.model_type} is not a causal language model of transformers"])
    classes: list[type[PreTrainedModel]] = list(found) if isinstance(found, tuple | list) else [found]
    named = [each for each in classes if each.__name__ in (source.config.get("architectures") or [])]
    chosen = (named or classes)[0]
    if chosen.config_class is not type(config):
        raise UnsupportedModel(
            [f"{config.model_type} runs on another model's class, {chosen.__name__}: not folded yet"]
        )
    return chosen


def resolve_dtype(source: Source, config: PreTrainedConfig, asked: torch.dtype | None) -> torch.dtype:
    """Return the type that the model runs in: what was asked for, the config's, or the first weights' own."""
    if asked is not None:
        return asked
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    for entry in source.entries.values():
        if entry.is_floating_point:
            return DTYPES[entry.dtype]
    return torch.float32


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
