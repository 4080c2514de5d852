"""The experts of a decoder, from the fields of its config."""

from prefold.plan.model.fields import Fields
from prefold.plan.model.shape import Experts

_SHARED = ("n_shared_experts", "shared_expert_intermediate_size")


def experts_of(fields: Fields, inner: int) -> Experts | None:
    """Return the experts; None where all layers have one FFN, ``inner`` values wide."""
    count = fields.size("num_experts")
    if not count or fields.get("is_moe") is False:
        return None
    width = _width(fields, inner)
    return Experts(
        count, fields.size("num_experts_per_tok"), width, _shared_width(fields, width), _dense_layers(fields)
    )


def _width(fields: Fields, inner: int) -> int:
    """Return an expert's width; it has the usual name where dense layers have a name of their own."""
    own = fields.size("moe_intermediate_size")
    return own or (fields.size("plain_intermediate_size") if fields.has("intermediate_size_mlp") else inner)


def _shared_width(fields: Fields, width: int) -> int:
    """Return the width of the shared experts; one expert's where only the class of the config names them."""
    if not any(fields.has(field) for field in _SHARED):
        return width if any(".shared_expert" in name for name in fields.matrices) else 0
    return fields.size("shared_expert_intermediate_size") or width * fields.size("n_shared_experts")


def _dense_layers(fields: Fields) -> int:
    kinds = fields.get("mlp_layer_types")
    if kinds:
        return sum(kind == "dense" for kind in kinds)
    return sum(not _has_experts(fields, layer) for layer in range(fields.size("num_hidden_layers")))


def _has_experts(fields: Fields, layer: int) -> bool:
    listed = fields.get("moe_layers")
    if isinstance(listed, list):
        return layer in listed
    last = fields.get("moe_layer_end_index")
    return (
        layer >= fields.size("first_k_dense_replace")
        and (last is None or last < 0 or layer <= last)
        and layer not in (fields.get("mlp_only_layers") or ())
        and (layer + 1) % (fields.size("decoder_sparse_step") or 1) == 0
    )
