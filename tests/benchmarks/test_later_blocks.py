"""No type of transformers has a module behind its first block that sees the token alone."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.small import random_model, small_config
from benchmarks.tasks import KEYS, Key, auto_class
from prefold.convert.experiment.token_pure import has_weights
from prefold.convert.experiment.tokens import experiment_tokens, follows_tokens, mirrored
from prefold.convert.experiment.trace import first_tensor
from prefold.convert.model.running import hooks
from prefold.convert.model.skeleton import find_stacks

Outputs = dict[str, list[tuple[int, torch.Tensor | None]]]


def run(model: PreTrainedModel, ids: torch.Tensor) -> Outputs:
    """Return the outputs of all modules in a pass, numbered over all of them."""
    seen, number = Outputs(), count()

    def keep(name: str) -> Any:
        return lambda _, __, output: seen.setdefault(name, []).append((next(number), first_tensor(output)))

    with hooks(model, {}, {name: keep(name) for name, _ in model.named_modules()}):
        model(input_ids=ids)
    return seen


@torch.no_grad()
def pure_behind_the_first_block(model: PreTrainedModel) -> list[str]:
    """Name the modules with weights that return behind the first block, and what follows the tokens."""
    ids = experiment_tokens(model.config)
    passes = [run(model, tokens) for tokens in (ids, mirrored(ids))]
    inside = [
        [at for name, calls in passes[0].items() if f"{name}.".startswith(f"{stack.first_block}.") for at, _ in calls]
        for stack in find_stacks(model)
    ]
    first = min(max(numbers) for numbers in inside if numbers)
    weighty = [name for name, module in model.named_modules() if has_weights(module)]
    once = {
        name: [each[name][0] for each in passes] for name in weighty if all(len(p.get(name, [])) == 1 for p in passes)
    }
    return [name for name, ((at, one), (_, other)) in once.items() if at > first and follows_tokens(one, other)]


def built(name: str) -> PreTrainedModel:
    """Return a small model, or skip where coverage does not build one either."""
    key = Key.read(name)
    try:
        return random_model(small_config(key.model_type, key.task), auto_class(key)).eval()
    except (ImportError, ValueError, TypeError) as error:
        pytest.skip(f"not built: {error}")


def test_a_projection_of_the_embedding_in_a_later_block_is_found():
    """The control: values of the last block are made of the token's embedding."""
    model = built("causal/llama")
    embedded = list[torch.Tensor]()
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: embedded.append(output))

    def alone(_: nn.Module, __: Any) -> tuple[torch.Tensor]:
        return (embedded[-1],)

    assert pure_behind_the_first_block(model) == []
    model.model.layers[3].self_attn.v_proj.register_forward_pre_hook(alone)
    assert pure_behind_the_first_block(model) == ["model.layers.3.self_attn.v_proj"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [str(key) for key in KEYS if key.task != "seq2seq"])
def test_nothing_behind_the_first_block_sees_the_token_alone(name: str):
    assert pure_behind_the_first_block(built(name)) == []
