"""Lets vLLM serve folded checkpoints: its plugin, which every process of an engine calls (docs/serving.md).

A folded checkpoint has its source's type and architecture. Only the model class differs: it is derived from the one
that vLLM has for the source, whichever that is.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import vllm
from transformers import AutoConfig, PreTrainedConfig

from prefold.runtime.modeling_prefold import PLACEMENT_VARIABLE

# Each was tested. What is called here is not all of it public, so another version may need other code.
TESTED = ("0.32",)


def register() -> None:
    """Let vLLM load folded checkpoints; calling it again changes nothing.

    With a version of vLLM that was not tested, folded checkpoints are refused and all others are let alone.
    """
    if ".".join(vllm.__version__.split(".")[:2]) not in TESTED:
        _wrap(AutoConfig, "from_pretrained", _refuse_version)
        return
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.models.registry import _ModelRegistry
    from vllm.transformers_utils.config import HFConfigParser
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(HFConfigParser, "parse", _parse)
    _wrap(_ModelRegistry, "inspect_model_cls", _inspect)
    _wrap(_ModelRegistry, "resolve_model_cls", _resolve)
    _wrap(BaseModelLoader, "load_model", _load)
    _wrap(InputProcessor, "_validate_lora", _admit_request)
    _wrap(WorkerLoRAManager, "_load_adapter", _admit_adapter)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if hasattr(original, "prefold"):
        return

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    call.prefold = True  # type: ignore[attr-defined]
    setattr(owner, name, call)


def _refuse_version(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)
    if hasattr(config, "prefold"):
        tested = ", ".join(f"{version}.*" for version in TESTED)
        raise ValueError(f"a folded checkpoint: prefold serves with vLLM {tested}, and this is {vllm.__version__}")
    return config


def _parse(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    content, config = original(*args, **kwargs)
    return content, _as_source(config) if hasattr(config, "prefold") else config


def _as_source(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config as the source's, with what every process of an engine asks about the fold as attributes.

    Raises:
        ValueError: the source runs code of its own.
    """
    if not type(config).__module__.startswith("transformers."):
        raise ValueError(
            f"{config.model_type}: a source with code of its own is served by transformers alone, not by vLLM"
        )
    vars(config).pop("auto_map", None)
    config.prefold_model_type = config.model_type  # vLLM changes the other for a draft in the same checkpoint
    config.prefold_placement = os.environ.get(PLACEMENT_VARIABLE) or config.prefold["placement"]
    return config


def _inspect(original: Callable[..., Any], registry: Any, architectures: Any, model_config: Any) -> Any:
    from prefold.runtime.vllm.refusals import require_served

    require_served(model_config)
    return original(registry, architectures, model_config)


def _resolve(original: Callable[..., Any], registry: Any, architectures: Any, model_config: Any) -> Any:
    from prefold.runtime.vllm.draft import derive_draft
    from prefold.runtime.vllm.model import derive

    model_class, architecture = original(registry, architectures, model_config)
    config = model_config.hf_config
    if hasattr(config, "prefold"):
        if getattr(model_config, "convert_type", "none") != "none":
            raise ValueError("a folded checkpoint generates, and does nothing else with vLLM")
        model_class = (derive if config.model_type == config.prefold_model_type else derive_draft)(model_class)
    return model_class, architecture


def _load(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from prefold.runtime.vllm.model import require_loaded

    model = original(*args, **kwargs)
    require_loaded(model)
    return model


def _admit_request(original: Callable[..., Any], processor: Any, request: Any) -> Any:
    from prefold.runtime.vllm.refusals import require_adaptable

    require_adaptable(processor.model_config.hf_config, request)
    return original(processor, request)


def _admit_adapter(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    from prefold.runtime.vllm.refusals import require_adaptable

    require_adaptable(manager._adapter_manager.model.config, request)
    return original(manager, request)
