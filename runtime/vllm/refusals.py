"""What vLLM cannot serve of a folded checkpoint, said when an engine starts or an adapter is loaded."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.exceptions import VLLMValidationError
from vllm.lora.utils import get_adapter_absolute_path
from vllm.platforms import current_platform

from prefold.runtime.columns_prefold import columns_of, unread_of
from prefold.runtime.modeling_prefold import FORMAT
from prefold.runtime.storage_prefold import PLACEMENTS


def require_served(model_config: Any) -> None:
    """Refuse what no process of the engine could run.

    Raises:
        ValueError: with every reason.
    """
    section = getattr(model_config.hf_config, "prefold", None)
    if section is None:
        return
    if section["format"] != FORMAT:
        raise ValueError(
            f"a folded checkpoint of format {section['format']}, and this prefold serves format {FORMAT}: fold it anew"
        )
    reasons = _of_checkpoint(section) + _of_engine(model_config)
    if reasons:
        raise ValueError("a folded checkpoint that vLLM cannot serve: " + "; ".join(reasons))


def _of_checkpoint(section: dict[str, Any]) -> list[str]:
    folds, reasons = section["folds"], []
    if len(folds) != 1 or folds[0]["side"]["name"] or folds[0]["side"]["sees_source"]:
        reasons.append("it is no decoder alone: transformers serves it")
    if any(fold["sum"] for fold in folds):
        reasons.append("its first layer sees a sum of look-ups (positions beside tokens): transformers serves it")
    if any(fold["table"]["tokens_of"] for fold in folds):
        reasons.append(f"its table stands beside its embedding (--cut {folds[0]['name']}): transformers serves it")
    if any(fold["unreachable"] for fold in folds):
        reasons.append("it has embeddings beside the token's that no row holds: " + ", ".join(folds[0]["unreachable"]))
    if section["refused_inputs"]:
        reasons.append("it was folded for token ids alone (--text-only)")
    return reasons


def _of_engine(model_config: Any) -> list[str]:
    reasons, config = [], model_config.hf_config
    if model_config.enable_prompt_embeds:
        reasons.append("enable_prompt_embeds: there are no token ids to look up")
    placement = config.prefold_placement
    if placement not in PLACEMENTS:
        reasons.append(f"prefold_placement {placement!r} is none of {', '.join(PLACEMENTS)}")
    elif placement != "device" and not current_platform.is_cpu() and not model_config.enforce_eager:
        reasons.append(
            f"prefold_placement {placement!r}: rows come from the host, which no graph captures; enforce_eager"
        )
    return reasons


def require_adaptable(config: Any, request: Any) -> None:
    """Refuse an adapter that changes what is folded: vLLM would leave that part out without a word.

    Raises:
        VLLMValidationError: with the names of the folded modules, or because the adapter's file does not tell.
    """
    section = getattr(config, "prefold", None)
    if section is None or request is None:
        return
    folded = folded_modules(section)
    touched = [name for name in _adapted(request) if any(f"{name}.".startswith(f"{each}.") for each in folded)]
    if touched:
        raise VLLMValidationError(
            f"adapter {request.lora_name}: {', '.join(touched)}: folded into the table, without weights to adapt;"
            " fold the source with this adapter (prefold convert --adapter)"
        )


def folded_modules(section: dict[str, Any]) -> list[str]:
    """Return the source's names of all modules that became look-ups, the embedding among them."""
    (fold,) = section["folds"]
    folded = [*columns_of(fold), *unread_of(fold), *fold["merged"]]
    return [fold["table"]["module"], *(each["module"] for each in folded)]


def _adapted(request: Any) -> list[str]:
    """Return the modules that an adapter changes, by the source's names."""
    file = Path(get_adapter_absolute_path(request.lora_path)) / "adapter_model.safetensors"
    if not file.exists():
        raise VLLMValidationError(f"adapter {request.lora_name}: no {file.name}: for a folded model it has to be that")
    with safe_open(str(file), framework="pt") as tensors:
        names = [name.removeprefix("base_model.model.") for name in tensors.keys()]  # noqa: SIM118
    return list(dict.fromkeys(name.partition(".lora_")[0] for name in names))
