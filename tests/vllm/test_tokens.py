"""A folded checkpoint says in vLLM what its source says there, token by token."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.vllm.checkpoints import fold
from tests.vllm.engines import answers, are_close, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

# Where vLLM has fused modules, norms of heads, scaled embeddings, parallel blocks, no class of its own, experts.
NAMED = ("llama", "qwen3", "gemma2", "cohere", "gpt_neox", "phi3", "mixtral")
OTHERS = ("llama_tied", "llama_one_kv_head", "qwen2", "gemma3", "qwen3_moe", "olmo2", "granite", "bloom", "gptj")
OTHERS += ("falcon", "falcon_new", "cohere2_moe")
# On two ranks a model takes one minute, and two compiled, so it runs there in one mode unless everything is asked for.
# Compiled: fused modules, parallel blocks, no class of its own, experts.
COMPILED_ON_TWO = ("llama", "cohere", "gpt_neox", "mixtral")
# Eager: the rest of the named; heads that are repeated; parallel blocks that add up their parts in other ways.
EAGER_ON_TWO = ("qwen3", "gemma2", "phi3", "llama_one_kv_head", "falcon_new", "cohere2_moe")


def slow_but(quick):
    """Mark all that are named, but for a few, as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in (*NAMED, *OTHERS)]


def assert_same(folder, **options):
    """Greedy tokens of 32 prompts x 32 steps are equal, all of them; and they are not always the same few."""
    source, folded = (answers(folder / side, **options) for side in ("source", "folded"))
    assert len({token for each in source for token in each.tokens}) > 20
    assert tokens(folded) == tokens(source)


@pytest.mark.parametrize("name", [*NAMED, *OTHERS])
def test_eager(name, checkpoint):
    assert_same(checkpoint(name))


@pytest.mark.parametrize("name", slow_but(NAMED))
def test_compiled(name, checkpoint):
    assert_same(checkpoint(name), enforce_eager=False)


@pytest.mark.ranks
@pytest.mark.parametrize("name", slow_but(EAGER_ON_TWO))
def test_eager_on_two_ranks(name, checkpoint):
    assert_same(checkpoint(name), ranks=2)


@pytest.mark.ranks
@pytest.mark.parametrize("name", slow_but(COMPILED_ON_TWO))
def test_compiled_on_two_ranks(name, checkpoint):
    assert_same(checkpoint(name), ranks=2, enforce_eager=False)


MERGED = [
    {},
    pytest.param({"enforce_eager": False}, marks=pytest.mark.slow),
    pytest.param({"ranks": 2}, marks=[pytest.mark.slow, pytest.mark.ranks]),
]


@pytest.mark.parametrize("options", MERGED, ids=["eager", "compiled", "two ranks"])
@pytest.mark.parametrize("name", ["cohere", "falcon"])
def test_an_ffn_in_the_residual(name, options, checkpoint, tmp_path):
    """A sum in another order: no longer equal to the last bit, and equal in what is said."""
    folded = fold(checkpoint(name) / "source", tmp_path / "merged", merge_residual=True)
    assert tokens(answers(folded, **options)) == tokens(answers(checkpoint(name) / "source", **options))


def test_columns_in_the_wrong_place_are_noticed(checkpoint, tmp_path):
    """The control: keys that are rotated by one value change every answer."""
    folder = checkpoint("llama")
    broken = shutil.copytree(folder / "folded", tmp_path / "broken")
    (table,) = load_file(broken / "prefold_table.safetensors").items()
    name, rows = table
    keys = slice(256, 320)
    rows[:, keys] = rows[:, keys].roll(1, dims=1)
    save_file({name: rows}, broken / "prefold_table.safetensors")
    pairs = list(zip(answers(folder / "source"), answers(broken), strict=True))
    assert not any(source.tokens == other.tokens for source, other in pairs)
    assert not all(are_close(source, other) for source, other in pairs)
