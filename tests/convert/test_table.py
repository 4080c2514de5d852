"""Computing the table: what is left out of a pass changes no bit, and what runs ahead keeps its order."""

import pytest
import torch

from prefold.convert.checkpoint.source import open_source
from prefold.convert.fold.bypass import bypassed
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
    whole = compute_rows(model, cut, torch.arange(cut.rows)[:, None])[:, 0]
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
