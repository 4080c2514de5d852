"""Whether a model decodes, by what its config says of itself and by the classes that transformers has for its type."""

from prefold.plan.model.fields import Fields

_CAUSAL, _MASKED = "ForCausalLM", "ForMaskedLM"


def decodes(fields: Fields) -> bool:
    """Return whether a model makes one token after the other; an encoder reads all tokens at once.

    A field or the class that a checkpoint names says it, or else the type: one that fills masks, and is made for no
    more than that unless a field says so.
    """
    if fields.get("is_encoder_decoder") or fields.get("is_decoder"):
        return True
    named = [str(name) for name in fields.get("architectures") or ()]
    if any(name.endswith(_CAUSAL) for name in named):
        return True
    return not (any(name.endswith(_MASKED) for name in named) or _fills_masks(str(fields.get("model_type"))))


def _fills_masks(kind: str) -> bool:
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    except ImportError:
        return False
    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
