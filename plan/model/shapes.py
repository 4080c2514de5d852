"""Shapes by name: the models that a plan can be made for without a config."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from prefold.common.errors import UnknownName
from prefold.plan.model.shape import Experts, Latent, Shape


@cache
def presets() -> dict[str, Shape]:
    """Return the catalogue, in its order."""
    tables = tomllib.loads(files("prefold.plan.model").joinpath("shapes.toml").read_text(encoding="utf-8"))
    return {name: _shape(name, table) for name, table in tables.items()}


def find_shape(name: str) -> Shape:
    """Return the shape of that name; ``UnknownName``, with the nearest names, where there is none."""
    known = presets()
    if name.lower() not in known:
        raise UnknownName("shape", name, list(known))
    return known[name.lower()]


def _shape(name: str, table: dict[str, Any]) -> Shape:
    experts, latent = table.pop("experts", None), table.pop("latent", None)
    table.setdefault("head_dim", table["hidden_size"] // table["num_attention_heads"])
    return Shape(
        name=name,
        experts=Experts(**experts) if experts else None,
        latent=Latent(**latent) if latent else None,
        **table,
    )
