"""Norms are known by what they do, whatever their class is called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from prefold.convert.experiment.look_ups import Norm, find_norm, gain_and_shift
from prefold.convert.experiment.trace import Call

WIDTH = 12


def shaken(module: nn.Module) -> nn.Module:
    """Give a module random weights: an identity would hide a mistake."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


@torch.no_grad()
def found(module: nn.Module, width: int = WIDTH) -> Norm | None:
    """Ask what a module is, having seen one call of it."""
    taken = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(1))
    output = module(taken)
    return find_norm(module, "norm", Call(0, taken, output, output))


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize(
    ("kind", "centred"), [(nn.LayerNorm, True), (LlamaRMSNorm, False), (T5LayerNorm, False), (Gemma2RMSNorm, False)]
)
def test_a_norm_is_found_with_its_epsilon(kind: type[nn.Module], centred: bool, eps: float):
    assert found(shaken(kind(WIDTH, eps=eps))) == Norm("norm", centred, eps)


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}], ids=str)
def test_a_norm_without_weights_is_found(options: dict[str, bool]):
    assert found(shaken(nn.LayerNorm(WIDTH, eps=1e-5, **options))) == Norm("norm", True, 1e-5)


def test_the_epsilon_is_the_one_that_the_norm_uses_and_not_another_of_its_numbers():
    module = shaken(nn.LayerNorm(WIDTH, eps=1e-3))
    module.scale, module.dropout = 1e-6, 0.1
    assert found(module) == Norm("norm", True, 1e-3)


class _Squashed(nn.LayerNorm):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(values))


class _Clipped(nn.LayerNorm):
    """Does as a norm does but for large values."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values).clamp(max=1.0)


class _TwoAtOnce(nn.LayerNorm):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values) + 0.01 * values.roll(1, 1)


class _Root(nn.LayerNorm):
    """Divides by the largest value instead of the deviation."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values / (values.abs().amax(-1, keepdim=True) + self.eps) * self.weight


class _Silent(nn.LayerNorm):
    """Its epsilon is no number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.eps = torch.tensor(1e-5)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(values, (WIDTH,), self.weight, self.bias, 1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(WIDTH, WIDTH),
        nn.Identity(),
        nn.Dropout(0.5),
        nn.GELU(),
        nn.Softmax(-1),
        nn.Sequential(nn.LayerNorm(WIDTH)),
        nn.GroupNorm(2, 8),
        *(kind(WIDTH) for kind in (_Squashed, _Clipped, _TwoAtOnce, _Root, _Silent)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_norm_is_none(module: nn.Module):
    assert found(shaken(module)) is None


def test_a_module_of_another_shape_is_no_norm():
    assert found(shaken(nn.Linear(WIDTH, WIDTH + 1))) is None


@given(
    width=st.integers(2, 40),
    centred=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-6, 1e-5, 1e-3]),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_scale_centre_gain_and_shift_are_the_module(width: int, centred: bool, eps: float, scale: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    module = (nn.LayerNorm if centred else LlamaRMSNorm)(width, eps=eps).double()
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(width, generator=generator, dtype=torch.float64))
    norm = Norm("norm", centred, eps)
    gain, shift = gain_and_shift(module, norm, width)
    values = torch.randn(3, 5, width, generator=generator, dtype=torch.float64) * scale
    with torch.no_grad():
        # RMS norms of transformers compute in float32, whatever they are given.
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if centred else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(norm.standardized(values) * gain + shift, module(values), **tolerance)
