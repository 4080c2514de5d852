"""What the meter counts as a read of a parameter, operation by operation."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from prefold.convert.fold.reads import Meter, metered
from tests.conftest import random_model, small_config

DTYPES = [torch.float32, torch.bfloat16]


def reads(model: nn.Module, run: Callable[[], object]) -> Meter:
    """Run something under the meter."""
    with metered(model) as meter:
        run()
    return meter


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_linear_layer_counts_weight_and_bias_once_whatever_the_batch(dtype: torch.dtype, batch: int):
    model = nn.Linear(4, 3, dtype=dtype)
    meter = reads(model, lambda: model(torch.zeros(batch, 4, dtype=dtype)))
    assert meter.whole == {"weight": 12 * dtype.itemsize, "bias": 3 * dtype.itemsize}
    assert meter.total == 15 * dtype.itemsize


def test_a_linear_layer_that_runs_twice_is_read_once():
    model = nn.Linear(4, 4, bias=False)
    assert reads(model, lambda: model(model(torch.zeros(2, 4)))).total == 16 * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [[0], [1, 2, 3], [5, 5, 5, 5]])
def test_an_embedding_counts_a_row_for_every_token(dtype: torch.dtype, tokens: list[int]):
    model = nn.Embedding(10, 6, dtype=dtype)
    meter = reads(model, lambda: model(torch.tensor([tokens])))
    assert meter.gathered == {"weight": len(tokens) * 6 * dtype.itemsize}
    assert meter.whole == {}


@pytest.mark.parametrize(
    "look_up",
    [
        lambda weight, index: weight[index],
        lambda weight, index: weight.index_select(0, index),
        lambda weight, index: functional.embedding(index, weight),
    ],
)
def test_every_kind_of_look_up_counts_its_rows(look_up):
    model = nn.Embedding(10, 6)
    meter = reads(model, lambda: look_up(model.weight, torch.tensor([1, 4, 4])))
    assert meter.total == 3 * 6 * 4


@pytest.mark.parametrize(
    "view",
    [
        lambda weight: weight.t(),
        lambda weight: weight.view(-1),
        lambda weight: weight[2],
        lambda weight: weight[1:3],
        lambda weight: weight.unsqueeze(0).expand(5, 4, 6),
        lambda weight: weight.split(2),
        lambda weight: weight.detach(),
    ],
)
def test_a_view_reads_nothing(view):
    model = nn.Linear(6, 4, bias=False)
    assert reads(model, lambda: view(model.weight)).total == 0


def test_the_part_that_a_view_shows_is_what_is_read_of_it():
    model = nn.Linear(6, 4, bias=False)
    assert reads(model, lambda: model.weight[1:3].sum()).total == 2 * 6 * 4
    assert reads(model, lambda: model.weight[0].sum() + model.weight[3].sum() + model.weight[3].sum()).total == 48


def test_what_is_no_parameter_is_not_counted():
    model = nn.Linear(6, 4, bias=False)
    model.register_buffer("more", torch.ones(100))
    assert reads(model, lambda: model.more.sum() + torch.ones(7).sum()).total == 0


def test_a_tied_head_is_read_as_a_weight_beside_the_rows_of_the_look_up():
    embedding, head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    meter = reads(model, lambda: model(torch.tensor([[1], [2]])))
    assert meter.gathered == {"0.weight": 2 * 6 * 4}
    assert meter.whole == {"0.weight": 10 * 6 * 4}


def experts(groups: list[int]) -> Meter:
    """Run a grouped product of 4 experts, ``groups`` rows for each."""
    model = nn.ParameterDict({"weights": nn.Parameter(torch.randn(4, 16, 8, dtype=torch.bfloat16))})
    ends = torch.tensor(groups).cumsum(0).to(torch.int32)
    rows = torch.randn(sum(groups), 16, dtype=torch.bfloat16)
    return reads(model, lambda: torch._grouped_mm(rows, model["weights"], offs=ends))


@pytest.mark.parametrize(
    ("groups", "used"), [([1, 0, 0, 0], 1), ([0, 2, 0, 3], 2), ([1, 1, 1, 1], 4), ([0, 0, 0, 9], 1)]
)
def test_a_grouped_product_counts_the_experts_that_have_rows(groups: list[int], used: int):
    assert experts(groups).total == used * 16 * 8 * 2


def test_a_model_with_experts_reads_those_that_its_tokens_chose():
    model = random_model(small_config("mixtral", num_hidden_layers=1))
    chosen: list[torch.Tensor] = []
    router = next(module for name, module in model.named_modules() if name.endswith("mlp.gate"))
    router.register_forward_hook(lambda _, __, output: chosen.append(output[-1]))
    meter = reads(model, lambda: model(torch.tensor([[5]]), use_cache=False))
    (indices,) = chosen
    used = len(set(indices.flatten().tolist()))
    expert = {name: p for name, p in model.named_parameters() if ".experts." in name}
    assert used == 2
    assert expert
    for name, parameter in expert.items():
        assert meter.whole[name] == parameter.numel() * parameter.element_size() * used // 4


def test_every_parameter_of_a_small_model_is_counted_once():
    model = random_model(small_config("llama"))
    meter = reads(model, lambda: model(torch.tensor([[5], [5]]), use_cache=False))
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    embedding = sizes.pop("model.embed_tokens.weight")
    assert meter.whole == sizes
    assert meter.gathered == {"model.embed_tokens.weight": embedding // 97 * 2}
