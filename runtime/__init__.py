"""What runs inside a user's program. Importing it lets transformers load folded checkpoints without remote code."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from prefold.runtime import modeling_prefold
from prefold.runtime.columns_prefold import FoldedInputError
from prefold.runtime.storage_prefold import TableError

__all__ = ["FoldedInputError", "TableError", "register"]

_PREFIX = f"{modeling_prefold.PREFIX.lower()}_"


class _FoldedTypes(dict[str, type[PreTrainedConfig]]):
    """Maps ``prefold_x`` to the folded config class of ``x``, made when it is first asked for.

    A dictionary of all of them would import every architecture that transformers has.
    """

    def __contains__(self, model_type: object) -> bool:
        return super().__contains__(model_type) or (
            isinstance(model_type, str)
            and model_type.startswith(_PREFIX)
            and model_type.removeprefix(_PREFIX) in CONFIG_MAPPING._mapping
        )

    def __missing__(self, model_type: str) -> type[PreTrainedConfig]:
        source = CONFIG_MAPPING[model_type.removeprefix(_PREFIX)]
        folded: type[PreTrainedConfig] = modeling_prefold.derive(source)
        self[model_type] = folded
        for auto_class in (each for name, each in vars(modeling_auto).items() if name.startswith("AutoModel")):
            found: Any = auto_class._model_mapping.get(source, ())
            for model_class in found if isinstance(found, tuple | list) else [found]:
                auto_class.register(folded, modeling_prefold.derive(model_class, config_class=source))
        return folded

    def get(self, model_type: str, default: Any = None) -> Any:
        """Return the config class, making it if need be."""
        return self[model_type] if model_type in self else default  # noqa: SIM401  # it is ``get`` itself


def register() -> None:
    """Let ``AutoConfig`` and the auto classes of models load every folded type; importing this package does it."""
    if not isinstance(CONFIG_MAPPING._extra_content, _FoldedTypes):
        CONFIG_MAPPING._extra_content = _FoldedTypes(CONFIG_MAPPING._extra_content)


register()
