"""The skeleton: its first block is the whole model's, in less memory, and the rest does not notice what is gone."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from benchmarks.small import small_config
from prefold.convert.experiment.trace import first_tensor
from prefold.convert.model import filling
from prefold.convert.model.filling import windows
from prefold.convert.model.running import hooks, run_until, stop
from prefold.convert.model.skeleton import (
    Stack,
    build_on_meta,
    find_stacks,
    first_to_run,
    materialize,
    prune,
)

IDS = torch.arange(16).view(2, 8) + 20


def find_stack(model: nn.Module, within: str = "") -> Stack | None:
    return next(iter(find_stacks(model, within)), None)


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedModel, list[Stack]]:
    model = build_on_meta(model_class, config, torch.float32)
    stacks = find_stacks(model)
    for stack in stacks:
        prune(model, stack, stack.kept)
    materialize(model, 64)
    return model, stacks


def whole(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class._from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def copied(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copy what a checkpoint would hold; whatever is not in one, the skeleton must have right by itself."""
    state = source.state_dict()
    for name, tensor in target.state_dict().items():
        tensor.copy_(state[name])


@torch.no_grad()
def output_of(model: PreTrainedModel, block: str, **inputs: Any) -> torch.Tensor:
    seen = []

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(first_tensor(output).clone())
        stop()

    with hooks(model, {}, {block: leave}):
        run_until(model, inputs)
    return seen[0]


CAUSAL = [
    "llama", "gpt2", "mamba2", "jamba", "falcon_h1", "gemma3n_text", "gemma4_text", "lfm3", "zamba", "zamba2",
    "hrm_text", "longcat_flash", "apertus", "inkling2_text", "rwkv",
]  # fmt: skip


@pytest.mark.parametrize("model_type", CAUSAL)
def test_the_first_block_says_what_the_whole_models_does_also_in_a_cached_step(model_type: str):
    config = small_config(model_type)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    full, (small, stacks) = whole(model_class, config), skeleton(model_class, config)
    copied(full, small)
    block = stacks[0].first_block
    assert torch.equal(*(output_of(model, block, input_ids=IDS, use_cache=False) for model in (full, small)))
    if model_type == "rwkv":
        return  # it takes a state instead of a cache
    steps = []
    for model in (full, small):
        cache = DynamicCache(config=model.config)
        output_of(model, block, input_ids=IDS[:, :7], past_key_values=cache, use_cache=True)
        step = {"input_ids": IDS[:, 7:], "attention_mask": torch.ones(2, 8, dtype=torch.long)}
        position = {"position_ids": torch.full((2, 1), 7)}
        steps.append(output_of(model, block, past_key_values=cache, use_cache=True, **step, **position))
    assert torch.equal(*steps)


@pytest.mark.parametrize("model_type", ["bert", "albert", "modernbert", "funnel"])
def test_an_encoders_first_block_says_what_the_whole_models_does(model_type: str):
    config = small_config(model_type)
    model_class = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    full, (small, stacks) = whole(model_class, config), skeleton(model_class, config)
    copied(full, small)
    assert torch.equal(*(output_of(model, stacks[0].first_block, input_ids=IDS) for model in (full, small)))


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_both_sides_of_an_encoder_decoder_have_a_stack_of_their_own(model_type: str):
    config = small_config(model_type)
    model_class = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    full, (small, _) = whole(model_class, config), skeleton(model_class, config)
    copied(full, small)
    names = {module: name for name, module in small.named_modules()}
    encoder, decoder = (names[side] for side in (small.get_encoder(), small.get_decoder()))
    states = BaseModelOutput(last_hidden_state=torch.randn(2, 8, config.hidden_size))
    for side, given in ((encoder, {"input_ids": IDS}), (decoder, {"encoder_outputs": states})):
        block = find_stack(small, side).first_block
        assert block.startswith(f"{side}.")
        given = given | {"decoder_input_ids": IDS, "use_cache": False}
        assert torch.equal(*(output_of(model, block, **given) for model in (full, small)))


@pytest.mark.parametrize("model_type", CAUSAL)
def test_a_whole_pass_of_the_skeleton_runs_and_leaves_no_parameter_unset(model_type: str):
    config = small_config(model_type)
    model, _ = skeleton(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    head = model.get_output_embeddings()  # of it, and of embeddings, no more is filled than the experiments' tokens
    filled = [module for module in model.modules() if not isinstance(module, nn.Embedding) and module is not head]
    for module in filled:
        assert all(p.isfinite().all() and p.any() for p in module.parameters(recurse=False)), module


def test_the_config_is_neither_changed_nor_shared():
    config = small_config("gemma4_text")
    before = config.to_dict()
    model, stacks = skeleton(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert stacks[0].kept == [0, 3]
    assert config.to_dict() == before
    assert model.config is not config
    assert model.config.layer_types == config.layer_types


def test_blocks_that_differ_in_a_switch_alone_are_kinds_of_their_own():
    """A layer that keeps keys for later ones must not be represented by one that does not."""
    config = small_config("gemma4_text", num_kv_shared_layers=2, num_hidden_layers=8,
                          layer_types=["sliding_attention", "full_attention"] * 4)  # fmt: skip
    model, stacks = skeleton(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert stacks[0].kinds == [0, 1, 0, 1, 4, 5, 6, 7]
    with torch.no_grad():
        assert model.base_model(input_ids=IDS, use_cache=False).last_hidden_state.isfinite().all()


def test_ties_between_blocks_that_stay_stay():
    config = small_config("zamba", num_hidden_layers=6, layers_block_type=["linear_attention", "hybrid"] * 3)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = build_on_meta(model_class, config, torch.float32)
    stack = find_stack(model)
    prune(model, stack, [0, 1, 5])
    materialize(model, 64)
    one, other = (model.get_submodule(f"{stack.name}.{index}.shared_transf") for index in (1, 5))
    assert all(p is q for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.inner(states), "more"

    @property
    def width(self) -> int:
        return self.inner.in_features


class Towers(nn.Module):
    """A large stack that runs second, if at all, a small one that runs first, and a list of projections."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.ModuleList(Block(16) for _ in range(3))
        self.text = nn.ModuleList(Block(4) for _ in range(3))
        self.projections = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.text:
            states = block(states)[0] * (block.width // 4)
        return states


def test_the_largest_list_of_blocks_is_the_stack_and_projections_are_none():
    assert [stack.name for stack in find_stacks(Towers())] == ["images", "text"]
    assert find_stack(Towers(), "text").name == "text"
    assert find_stack(nn.Sequential(nn.Linear(4, 4))) is None


def test_the_stack_that_runs_first_is_found_by_running():
    model = Towers()
    stacks = find_stacks(model)
    for among, found in ((stacks, stacks[1]), (stacks[:1], None)):
        assert first_to_run(model, among, lambda: run_until(model, {"states": torch.ones(1, 4)})) is found


def test_a_stand_in_passes_on_what_the_last_block_returned_and_answers_for_its_block():
    model = Towers()
    expected = model.text[0](torch.ones(1, 4))[0]
    prune(model, find_stack(model, "text"), [0])
    assert torch.equal(model(torch.ones(1, 4)), expected)
    assert len(model.text) == 3
    assert [name for name, _ in model.text.named_parameters()] == ["0.inner.weight", "0.inner.bias"]
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 4)), expected)
    with pytest.raises(AttributeError):
        _ = model.text[1].nonsense


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(8, 64, 32))
        self.down = nn.Parameter(torch.empty(8, 32, 64))
        self.gain = nn.Parameter(torch.empty(32))


def test_large_weights_share_memory_and_are_all_different(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filling, "LARGE", 1024)
    with torch.device("meta"):
        model = Experts()
    windows([model])
    assert model.gain.is_meta
    for weight in (model.up, model.down):
        assert len(weight.flatten(1).unique(dim=0)) == 8
        assert len(weight[0].unique(dim=0)) == weight.shape[1]
        assert 0.5 < weight.std() * 64**0.5 < 2
        assert weight.untyped_storage().nbytes() < weight.numel() * 4 / 2
    assert not torch.equal(model.up.flatten(), model.down.flatten())
    assert model.up.untyped_storage().data_ptr() != model.down.untyped_storage().data_ptr()


def test_windows_change_nothing_that_a_pass_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filling, "LARGE", 256)
    config = small_config("mixtral")
    model, stacks = skeleton(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    output = output_of(model, stacks[0].first_block, input_ids=IDS, use_cache=False)
    dense = copy.deepcopy(model)
    for parameter in dense.parameters():
        parameter.data = parameter.data.contiguous().clone()
    again = output_of(dense, stacks[0].first_block, input_ids=IDS, use_cache=False)
    torch.testing.assert_close(output, again)
    assert len(output.flatten(0, 1).unique(dim=0)) == 16
