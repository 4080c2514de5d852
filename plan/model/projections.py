"""Widths of projections that no field of a config has, from the model's class, built without any memory."""

from typing import Any

_QUERIES = "q_proj"


def query_outputs(config: Any) -> int | None:
    """Return the values behind the queries' matrix; None without torch or such a class, or where there is no such name.

    ``config`` is one of transformers' own.
    """
    try:
        import torch
        from transformers import AutoModel
    except ImportError:
        return None
    if type(config) not in AutoModel._model_mapping:
        return None
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    found = (module for name, module in model.named_modules() if name.endswith(f".{_QUERIES}"))
    return getattr(next(found, None), "out_features", None)
