"""The type that a checkpoint's weights are stored in, from the ``quantization_config`` of its ``config.json``.

Methods have many names, and few ways to say the same: a type in a text, bits and a kind of numbers, or bits alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_FIELDS = ("quantization_config", "compression_config")
_TEXTS = ("quant_method", "quant_algo", "format", "fmt", "quant_type")
# A part of such a text, and the type that it means; the first that is found counts.
_MEANT = {"mxfp4": "mxfp4", "fp4": "fp4", "fp8": "fp8", "float8": "fp8", "e4m3": "fp8", "int4": "int4", "int8": "int8"}
_BITS = ("bits", "w_bit", "nbits", "num_bits", "weight_bits")
_BY_BITS = {("int", 4): "int4", ("int", 8): "int8", ("float", 4): "fp4", ("float", 8): "fp8"}
_PLAIN = "bf16"
# Values that share a scale: MXFP4's 32, where NVFP4 has 16.
_SHARED_BY = 32


def stored_as(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type of a checkpoint's weights, and a note where its quantization is not known; empty otherwise."""
    found = next((config[field] for field in _FIELDS if isinstance(config.get(field), Mapping)), None)
    if found is None:
        inner = config.get("text_config")
        return stored_as(inner) if isinstance(inner, Mapping) else (_PLAIN, "")
    kind = next(_types(found), None)
    if kind:
        return kind, ""
    method = found.get("quant_method", "no method")
    return _PLAIN, f"config: quantization_config: {method}: no such type of weights; they are counted as {_PLAIN}"


def _types(told: Mapping[str, Any]) -> Iterator[str]:
    text = " ".join(str(told.get(field, "")) for field in _TEXTS).lower()
    yield from (kind for part, kind in _MEANT.items() if part in text)
    yield from (kind for field, kind in (("load_in_4bit", "int4"), ("load_in_8bit", "int8")) if told.get(field))
    yield from filter(None, map(_by_bits, [*_groups(told), told]))


def _by_bits(told: Mapping[str, Any]) -> str:
    kind = "float" if str(told.get("type")).lower() == "float" else "int"
    found = _BY_BITS.get((kind, next((told[field] for field in _BITS if told.get(field)), 0)), "")
    return "mxfp4" if found == "fp4" and told.get("group_size") == _SHARED_BY else found


def _groups(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what each group of modules says of its weights; of several groups the first counts."""
    groups = told.get("config_groups")
    found = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else []
    return [weights for weights in found if isinstance(weights, Mapping)]
