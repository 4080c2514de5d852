"""Embeddings of positions and types are known by what they return: rows of what they hold."""

import pytest
import torch
from torch import nn

from prefold.convert.experiment.look_ups import LookUp, find_look_ups
from prefold.convert.experiment.tokens import experiment_tokens, mirrored
from prefold.convert.experiment.trace import trace
from prefold.convert.model.inputs import Side
from tests.conftest import small_config
from tests.convert.skeletons import skeleton


def look_ups(model_type: str, side: Side = Side(), **changes) -> dict[str, LookUp]:  # noqa: B008  # frozen
    model, first_block = skeleton(small_config(model_type, **changes), side.name)
    ids = experiment_tokens(model.config)
    here, there = (trace(model, side, first_block, each) for each in (ids, mirrored(ids)))
    return {found.module.rpartition(".")[2]: found for found in find_look_ups(model, here, there)}


@pytest.mark.parametrize(
    ("model_type", "side", "expected"),
    [
        ("gpt2", Side(), {"wpe": 128}),
        ("opt", Side(), {"embed_positions": 128 + 2}),  # two rows that are never asked for
        ("bert", Side(), {"position_embeddings": 128, "token_type_embeddings": 2}),
        ("roberta", Side(), {"position_embeddings": 128, "token_type_embeddings": 2}),
        ("bart", Side("model.encoder"), {"embed_positions": 128 + 2}),
        ("bart", Side("model.decoder", sees_source=True), {"embed_positions": 128 + 2}),
        ("whisper", Side("model.decoder", sees_source=True), {"embed_positions": 128}),
    ],
)
def test_positions_and_types_are_found_with_their_rows(model_type: str, side: Side, expected: dict[str, int]):
    found = look_ups(model_type, side)
    assert {name: look_up.rows for name, look_up in found.items()} == expected
    assert {look_up.width for look_up in found.values()} == {32}
    assert {look_up.factor for look_up in found.values()} == {1.0}


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "mamba", "bloom"])
def test_the_tokens_own_embedding_is_none(model_type: str):
    assert look_ups(model_type) == {}


class _Scaled(nn.Embedding):
    def forward(self, *args, **kwargs) -> torch.Tensor:
        return super().forward(*args, **kwargs) * 1.01


class _Bent(nn.Embedding):
    def forward(self, *args, **kwargs) -> torch.Tensor:
        return super().forward(*args, **kwargs) ** 1.01


class _TwoTables(nn.Embedding):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.other = nn.Parameter(torch.randn(rows, width))


@pytest.mark.parametrize(("kind", "found"), [(_Scaled, True), (_Bent, False), (_TwoTables, False)])
def test_what_returns_anything_but_rows_of_its_one_table_times_a_number_is_none(kind: type[nn.Embedding], found: bool):
    model, first_block = skeleton(small_config("gpt2"))
    embedding = model.transformer.wpe
    cheat = kind(*embedding.weight.shape)
    cheat.weight = embedding.weight
    ids = experiment_tokens(model.config)
    model.transformer.wpe = cheat
    here, there = (trace(model, Side(), first_block, each) for each in (ids, mirrored(ids)))
    assert len(find_look_ups(model, here, there)) == found
