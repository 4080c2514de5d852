"""Linear maps in front of a sum: the token's row and other look-ups', side by side, go through one module together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.models.roc_bert.modeling_roc_bert import RoCBertEmbeddings

from benchmarks.accuracy import in_fp64
from benchmarks.small import random_model, small_config
from prefold.convert import UnsupportedModel, convert_checkpoint
from prefold.convert.study import study_model
from tests.conftest import fold_options
from tests.convert.skeletons import Bent, Mixing

# Widths of their own, as published: neither is the token's.
CONFIG = small_config("roc_bert", "masked", shape_embed_dim=12, pronunciation_embed_dim=20)


def sum_of(model: PreTrainedModel) -> Any:
    (cut,) = study_model(type(model), model.config).cuts
    return cut.sum


def test_look_ups_behind_a_map_are_parts_of_the_sum():
    found = sum_of(random_model(CONFIG, AutoModelForMaskedLM))
    names = {each.module.rpartition(".")[2]: (each.mapped, each.width) for each in found.look_ups}
    assert names == {
        "shape_embed": (True, 12),
        "pronunciation_embed": (True, 20),
        "position_embeddings": (False, 32),
        "token_type_embeddings": (False, 32),
    }
    assert (found.token, found.through) == (
        "roc_bert.embeddings.word_embeddings",
        "roc_bert.embeddings.map_inputs_layer",
    )
    assert [column.module.rpartition(".")[2] for column in found.columns] == ["query", "key", "value"]


def test_a_sum_without_a_map_goes_through_its_token_alone():
    found = sum_of(random_model(small_config("bert", "masked"), AutoModelForMaskedLM))
    assert found.through == found.token
    assert not any(each.mapped for each in found.look_ups)


class _Gated(nn.Linear):
    """Multiplies what one look-up makes of it by what another does."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) * (1 + 0.01 * values[..., -1:])


class _Squared(nn.Embedding):
    """Returns no rows that it holds: what the map makes of them would be taken for its constant."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids + 1).square()


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("map_inputs_layer", Bent),
        ("map_inputs_layer", _Gated),
        ("map_inputs_layer", Mixing),
        ("shape_embed", _Squared),
    ],
)
def test_a_map_that_is_not_linear_or_takes_more_than_look_ups_is_none(
    monkeypatch: pytest.MonkeyPatch, part: str, kind: type[nn.Module]
):
    made = RoCBertEmbeddings.__init__

    def cheat(self: Any, config: Any) -> None:
        made(self, config)
        honest = getattr(self, part)
        rows, width = honest.weight.shape
        setattr(self, part, kind(width, rows) if kind is not _Squared else kind(rows, width))

    monkeypatch.setattr(RoCBertEmbeddings, "__init__", cheat)
    with pytest.raises(UnsupportedModel, match="nothing folds"):
        sum_of(random_model(CONFIG, AutoModelForMaskedLM))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("maps")
    random_model(CONFIG, AutoModelForMaskedLM).save_pretrained(made / "source")
    convert_checkpoint(str(made / "source"), made / "folded", options=fold_options())
    return made


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, names: list[str]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = {name: torch.randint(97, (4, 12), generator=draw) for name in ["input_ids", *names]}
    said: torch.Tensor = model(**ids).logits
    return said.double()


def errors(folder: Path, names: list[str], folded: PreTrainedModel) -> tuple[float, float]:
    """Return the mean squared errors of source and fold against float64, given ids of these names."""
    source = loaded(folder / "source")
    with in_fp64(source) as exact:
        truth = logits(exact, names)
    one, other = ((logits(model, names) - truth).square().mean() for model in (source, folded))
    return float(one), float(other)


SHAPES, SOUNDS = "input_shape_ids", "input_pronunciation_ids"


@pytest.mark.parametrize("names", [[], [SHAPES], [SOUNDS], [SHAPES, SOUNDS]])
def test_other_ids_of_the_look_ups_give_what_the_source_gives(folder: Path, names: list[str]):
    """So few values settle no mean: 0.87 to 1.01 x were seen, and 7e7 x without the share of one."""
    source, folded = errors(folder, names, loaded(folder / "folded"))
    assert folded <= 1.5 * source


def test_ids_of_the_look_ups_count(folder: Path):
    source = loaded(folder / "source")
    assert (logits(source, [SHAPES]) - logits(source, [])).abs().max() > 1e-2
    assert (logits(source, [SOUNDS]) - logits(source, [])).abs().max() > 1e-2


def test_without_a_look_ups_share_the_fold_is_far_off(folder: Path):
    folded = loaded(folder / "folded")
    folded.get_parameter("roc_bert.embeddings.shape_embed.prefold.weight").data.zero_()
    source, other = errors(folder, [SHAPES], folded)
    assert other > 1000 * source
