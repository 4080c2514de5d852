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
OTHERS += ("falcon", "falcon_new", "cohere2_moe", "deepseek_v3")


def smoke(*quick):
    """Return all that are named, a few of them marked for the tests that everybody runs."""
    marked = {name: pytest.param(name, marks=pytest.mark.smoke) for name in quick}
    return [marked.get(name, name) for name in (*NAMED, *OTHERS)]


def assert_same(folder, **options):
    """Greedy tokens of 32 prompts x 32 steps are equal, all of them; and they are not always the same few."""
    source, folded = (answers(folder / side, **options) for side in ("source", "folded"))
    assert len({token for each in source for token in each.tokens}) > 20
    assert tokens(folded) == tokens(source)


@pytest.mark.parametrize("name", smoke("llama", "gpt_neox"))
def test_eager(name, checkpoint):
    assert_same(checkpoint(name))


@pytest.mark.parametrize("name", smoke("llama"))
def test_compiled(name, checkpoint):
    assert_same(checkpoint(name), enforce_eager=False)


@pytest.mark.ranks
@pytest.mark.parametrize("name", smoke("llama"))
def test_eager_on_two_ranks(name, checkpoint):
    assert_same(checkpoint(name), ranks=2)


@pytest.mark.ranks
@pytest.mark.parametrize("name", smoke())
def test_compiled_on_two_ranks(name, checkpoint):
    assert_same(checkpoint(name), ranks=2, enforce_eager=False)


MERGED = [
    {},
    {"enforce_eager": False},
    pytest.param({"ranks": 2}, marks=pytest.mark.ranks),
]


@pytest.mark.parametrize("options", MERGED, ids=["eager", "compiled", "two ranks"])
@pytest.mark.parametrize("name", ["cohere", "falcon"])
def test_an_ffn_in_the_residual(name, options, checkpoint, tmp_path):
    """A sum in another order: no longer equal to the last bit, and equal in what is said."""
    folded = fold(checkpoint(name) / "source", tmp_path / "merged", merge_residual=True)
    assert tokens(answers(folded, **options)) == tokens(answers(checkpoint(name) / "source", **options))


@pytest.mark.smoke
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
