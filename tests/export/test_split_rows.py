"""Split rows return what the stored ones return, to the bit."""

import pytest
import torch

from prefold.convert.fold.encoding import encoding_of
from prefold.export.split_rows import SplitRows
from prefold.runtime.storage_prefold import decoded


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_rows_of_fewer_bytes(dtype: torch.dtype, residual: bool):
    values = torch.randn(11, 24, generator=torch.Generator().manual_seed(0))
    encoding = encoding_of([8, 12, 4], torch.float32, dtype, residual=residual)
    stored, ids = encoding.encode(values), torch.tensor([[3, 0, 10], [7, 7, 1]])
    slices = [vars(part) for part in encoding.slices]
    split = SplitRows(stored, {"slices": slices}, torch.float32)
    assert torch.equal(split.fetch(ids), decoded(stored[ids], slices, torch.float32))
    assert {each.dtype for each in split.parameters()} <= {dtype, torch.float32}


def test_rows_in_another_type_are_cast_behind_the_look_up():
    table, ids = torch.randn(5, 6).bfloat16(), torch.tensor([[4, 2]])
    split = SplitRows(table, None, torch.float32)
    assert split.get_parameter("rows.weight").dtype == torch.bfloat16
    assert torch.equal(split.fetch(ids), table[ids].float())
