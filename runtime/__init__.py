"""Runtime of folds in a user's program. Importing it lets transformers load folds without remote code."""

from functools import wraps
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from prefold.runtime import modeling_prefold
from prefold.runtime.columns_prefold import FoldedInputError
from prefold.runtime.storage_prefold import TableError

__all__ = ["FoldedInputError", "TableError", "register"]

# The auto classes load models by the first, and build untrained ones by the second.
_ENTRANCES = ("from_pretrained", "_from_config")


def register() -> None:
    """Let auto classes and transformers' own classes load folded checkpoints; importing this package does it."""
    for name in _ENTRANCES:
        original = PreTrainedModel.__dict__[name].__func__
        if not hasattr(original, "prefold"):
            setattr(PreTrainedModel, name, classmethod(_entrance(original)))


def _entrance(original: Any) -> Any:
    """Wrap a class method of models: for the config of a fold it is called on the folded class."""

    @wraps(original)
    def call(cls: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        is_stock = cls.__module__.startswith("transformers.")
        folded = modeling_prefold.derive(cls) if is_stock and _is_fold(source, **kwargs) else cls
        return original(folded, source, *args, **kwargs)

    call.prefold = True  # type: ignore[attr-defined]
    return call


def _is_fold(source: Any, config: Any = None, **kwargs: Any) -> bool:
    config = source if config is None else config
    if not isinstance(config, PreTrainedConfig | None):
        try:
            config, _ = PreTrainedConfig.get_config_dict(config, **kwargs)
        except OSError:  # it has none, as loading it will say
            return False
    content = config if isinstance(config, dict) else vars(config or object)
    return "prefold" in content and "auto_map" in content  # a program that swaps modules by itself takes the latter out


register()
