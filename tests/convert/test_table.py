"""Computing the table: texts of one token, what is left out of a pass, and what runs ahead."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.models.funnel.modeling_funnel import FunnelEmbeddings, FunnelRelMultiheadAttention

from benchmarks.small import random_model, small_config
from prefold.convert.checkpoint.source import open_source
from prefold.convert.errors import ModelFailed, UnsupportedModel
from prefold.convert.fold.bypass import bypassed
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import compute_rows, prefetched, table_rows
from prefold.convert.model.load import load_config, resolve_model
from prefold.convert.model.running import hooks
from prefold.convert.study import study_model
from tests.conftest import EXACT, PARALLEL, load


def model_and_cut(source):
    opened = open_source(str(source))
    config = load_config(opened)
    return load(source), study_model(resolve_model(opened, config).model_class, config).cuts[0]


@pytest.mark.parametrize("model_type", EXACT)
def test_a_shortened_pass_gives_the_same_bits(checkpoint, model_type: str):
    model, cut = model_and_cut(checkpoint(model_type, torch.bfloat16))
    whole = compute_rows(model, cut, cut.texts(torch.arange(cut.rows)))[:, 0]
    assert torch.equal(torch.cat(list(table_rows(model, cut, 40))), whole)


@pytest.mark.parametrize("model_type", PARALLEL)
def test_a_parallel_blocks_attention_is_left_out(checkpoint, model_type: str):
    """Only the first token's pass runs it, to see what it returns."""
    model, cut = model_and_cut(checkpoint(model_type))
    attention = model.get_submodule(cut.columns[0].module.rpartition(".")[0])
    last = [name for name, module in attention.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    ran: list[int] = []
    with hooks(attention, {last: lambda *_: ran.append(1)}, {}), bypassed(model, cut):
        for tokens in (1, 8, 8):
            compute_rows(model, cut, torch.arange(tokens)[:, None])
    assert len(ran) == 1


def test_ahead_keeps_the_order_and_makes_one_at_a_time():
    made: list[int] = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    for number in prefetched(items()):
        assert len(made) <= number + 2
    assert made == [0, 1, 2, 3, 4]


def test_what_goes_wrong_ahead_is_raised_here():
    def items():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetched(items()))


def funnel(blocks: int, **changes: Any) -> PreTrainedModel:
    """Return a model that halves its texts behind each block but the last, and so runs none that is too short."""
    config = small_config("funnel", block_sizes=[2] * blocks, block_repeats=[1] * blocks, **changes)
    return random_model(config, AutoModelForMaskedLM)


def cut_of(model: PreTrainedModel) -> Cut:
    return study_model(type(model), model.config).cuts[0]


@pytest.mark.parametrize(("blocks", "length"), [(1, 1), (2, 3), (3, 5)])
def test_rows_come_from_the_shortest_texts_that_a_model_runs(blocks: int, length: int):
    model = funnel(blocks)
    cut = cut_of(model)
    assert cut.length == length
    rows = torch.cat(list(table_rows(model, cut, 40)))
    torch.testing.assert_close(rows, compute_rows(model, cut, torch.arange(cut.rows)[None])[0])
    if length > 1:
        with pytest.raises(ModelFailed):
            list(table_rows(model, replace(cut, length=1), 40))


def test_a_model_that_runs_no_text_as_short_as_the_experiments_is_refused():
    with pytest.raises(UnsupportedModel, match="does not run alone"):
        cut_of(funnel(4))


def test_a_model_that_runs_no_text_of_one_token_is_refused(monkeypatch: pytest.MonkeyPatch):
    made = FunnelEmbeddings.forward

    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        if len(input_ids.unique()) == 1:
            raise ValueError("boring")
        return made(self, input_ids)

    monkeypatch.setattr(FunnelEmbeddings, "forward", forward)
    with pytest.raises(UnsupportedModel, match=r"does not run a token alone, nor 8 times, .*boring"):
        cut_of(funnel(1))


class _Mixing(torch.nn.Linear):
    """Sees its neighbour, which nothing shows in a text of one token."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made = super().forward(values)
        return made + 0.01 * (made - made.roll(1, 1))


def test_a_module_that_a_text_of_one_token_says_nothing_of_is_no_column(monkeypatch: pytest.MonkeyPatch):
    columns = [column.module.rpartition(".")[2] for column in cut_of(funnel(3)).columns]
    assert columns == ["q_head", "k_head", "v_head"]
    made = FunnelRelMultiheadAttention.__init__

    def cheat(self: Any, config: Any, block_index: int) -> None:
        made(self, config, block_index)
        self.k_head = _Mixing(config.d_model, config.n_head * config.d_head)

    monkeypatch.setattr(FunnelRelMultiheadAttention, "__init__", cheat)
    assert [column.module.rpartition(".")[2] for column in cut_of(funnel(3)).columns] == ["q_head", "v_head"]
