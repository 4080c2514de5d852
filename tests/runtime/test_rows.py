"""Rows belong to one forward pass of one model in one thread."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from prefold.runtime import FoldedInputError
from tests.conftest import load, tokens
from tests.runtime.pairs import Interruption, Pair, generate, interrupted, logits, make_pair

MODELS = ["llama", "gpt_neox", "olmo2", "bloom", "mamba"]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp(request.param), request.param)


def _table(pair: Pair) -> torch.nn.Module:
    return pair.folded.get_submodule(pair.folded.config.prefold["folds"][0]["table"]["module"])


def test_rows_do_not_outlive_the_pass(pair: Pair) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    handle = _table(pair).register_forward_hook(lambda *_: seen.append(weakref.ref(pair.folded.prefold_rows[0].values)))
    generate(pair.folded, tokens())
    handle.remove()
    gc.collect()
    assert len(seen) > 1
    assert pair.folded.prefold_rows[0].values is None
    assert [row() for row in seen] == [None] * len(seen)


def test_rows_are_gone_before_the_second_layer(pair: Pair) -> None:
    held: list[torch.Tensor | None] = []
    second = next(module for name, module in pair.folded.named_modules() if name.endswith(".1"))
    handle = second.register_forward_pre_hook(lambda *_: held.append(pair.folded.prefold_rows[0].values))
    logits(pair.folded, tokens())
    handle.remove()
    assert held == [None]


def test_pass_after_an_interrupted_one_is_right(pair: Pair) -> None:
    first = pair.folded.get_submodule(pair.folded.config.prefold["folds"][0]["columns"][0]["module"])
    with interrupted(first), pytest.raises(Interruption):
        logits(pair.folded, tokens(seed=1))
    ids = tokens(3, 7)
    torch.testing.assert_close(logits(pair.folded, ids), logits(pair.source, ids), rtol=1.3e-6, atol=1e-5)
    assert pair.folded.prefold_rows[0].values is None


@pytest.mark.parametrize("whole", [True, False], ids=["model", "base model"])
def test_embeddings_after_an_interrupted_pass_never_meet_its_rows(pair: Pair, whole: bool) -> None:
    ids = tokens()
    first = pair.folded.get_submodule(pair.folded.config.prefold["folds"][0]["columns"][0]["module"])
    with interrupted(first), pytest.raises(Interruption):
        logits(pair.folded, ids)
    model = pair.folded if whole else pair.folded.base_model
    with pytest.raises(FoldedInputError, match="input_ids"):
        model(inputs_embeds=torch.zeros(*ids.shape, pair.source.config.hidden_size))


def test_two_models_do_not_share_rows(tmp_path: Path) -> None:
    """One pass runs in the middle of the other's, between the look-up and its readers."""
    one, other = make_pair(tmp_path / "one"), make_pair(tmp_path / "other", hidden_size=64)
    seen: list[torch.Tensor] = []
    handle = _table(one).register_forward_hook(lambda *_: seen.append(logits(other.folded, tokens(seed=1))))
    got = logits(one.folded, tokens())
    handle.remove()
    assert torch.equal(got, logits(one.folded, tokens()))
    assert torch.equal(seen[0], logits(other.folded, tokens(seed=1)))


def test_threads_do_not_share_rows(pair: Pair) -> None:
    prompts = [tokens(seed=seed) for seed in range(100)]
    expected = [logits(pair.folded, ids) for ids in prompts]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda ids: logits(pair.folded, ids), prompts))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copy_is_independent(pair: Pair, copied) -> None:
    ids = tokens()
    expected = logits(pair.folded, ids)
    twin = copied(pair.folded)
    assert type(twin) is type(pair.folded)
    assert twin.prefold_rows[0] is not pair.folded.prefold_rows[0]
    assert torch.equal(logits(twin, ids), expected)
    twin.get_submodule(twin.config.prefold["folds"][0]["table"]["module"]).weight.data.zero_()
    assert not torch.equal(logits(twin, ids), expected)
    assert torch.equal(logits(pair.folded, ids), expected)


def test_copy_made_during_a_pass_starts_without_rows(pair: Pair) -> None:
    twins: list[torch.nn.Module] = []
    handle = _table(pair).register_forward_hook(lambda *_: twins.append(copy.deepcopy(pair.folded)))
    logits(pair.folded, tokens())
    handle.remove()
    assert twins[0].prefold_rows[0].values is None


def test_classes_are_pickled_by_name(pair: Pair) -> None:
    for made in (type(pair.folded), type(pair.folded.config)):
        assert pickle.loads(pickle.dumps(made)) is made


def test_loading_twice_gives_one_class(pair: Pair) -> None:
    assert type(load(pair.folded_folder)) is type(pair.folded)
