"""Folded checkpoints on two processes, by transformers' own tensor parallelism, beside their sources there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import asked_for, load, some
from tests.runtime.pairs import generate, left_padded, make_folded
from tests.runtime.tensor_parallel import outputs

WORKER = Path(__file__).with_name("tensor_parallel.py")
RANKS = 2
# Which columns a rank has a part of.
CUT = {
    "llama": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    "qwen3": {"self_attn.q_norm", "self_attn.k_norm", "self_attn.v_proj"},
    "gemma2": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    "cohere": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    "gpt_neox": {"attention.query_key_value"},
    "phi3": set(),
    "mixtral": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    "qwen3_5_text": set(),
    "deepseek_v2": {"self_attn.q_b_proj"},
}


NAMES = some(CUT, "llama", "qwen3", "deepseek_v2")


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> set[str]:
    return {"llama", "qwen3", *asked_for(request, "name")}


@pytest.fixture(scope="module")
def folder(asked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small source and its folded checkpoint for every type."""
    made = tmp_path_factory.mktemp("ranks")
    for name in asked:
        make_folded(made / name, name)
    return made


@pytest.fixture(scope="module")
def seen(asked: set[str], folder: Path) -> list[dict[str, Any]]:
    """Return what each rank saw of every case."""
    torch.save(left_padded(), folder / "ids.pt")
    cases = [*(f"case:{name}" for name in sorted(asked)), "placed:llama", "saved:qwen3", "unknown_style:llama"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([*command, WORKER, folder, *cases], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=False) for rank in range(RANKS)]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far logits are apart where there is no padding, as a part of the largest."""
    _, mask = left_padded()
    return float((one - other)[mask == 1].abs().max() / one[mask == 1].abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_folded_and_source_say_the_same_tokens_on_ranks_as_alone(name: str, folder: Path, seen: list[dict[str, Any]]):
    ids, mask = left_padded()
    alone = generate(load(folder / name / "source"), ids, mask, max_new_tokens=8, min_new_tokens=8)
    for rank in seen:
        for kind in ("source", "folded"):
            assert torch.equal(rank[f"case:{name}"][kind]["tokens"], alone)
            assert torch.equal(rank[f"case:{name}"][kind]["static"], alone)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_no_further_apart_than_ranks_put_them(name: str, folder: Path, seen: list[dict[str, Any]]):
    """A sum over ranks has another order, and so may a product of fewer columns have: docs/serving.md says how much."""
    ids, mask = left_padded()
    alone = load(folder / name / "source")(input_ids=ids, attention_mask=mask).logits
    source, folded = (seen[0][f"case:{name}"][kind]["logits"] for kind in ("source", "folded"))
    assert torch.equal(folded, seen[1][f"case:{name}"]["folded"]["logits"])
    assert difference(source, folded) < 2e-6
    assert difference(alone, source) < 2e-6
    assert difference(alone, folded) < 2e-6


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_rank_has_its_part_of_what_the_source_computes(name: str, folder: Path, seen: list[dict[str, Any]]):
    cut, source = set[str](), load(folder / name / "source")
    parts = [rank[f"case:{name}"]["columns"] for rank in seen]
    for column, whole in outputs(source, list(parts[0]), left_padded()[0]).items():
        mine, other = (each[column] for each in parts)
        if mine.shape == whole.shape:
            assert torch.equal(mine, whole)
            assert torch.equal(other, whole)
        else:
            cut.add(column.partition("layers.0.")[2])
            assert torch.equal(torch.cat([mine, other], 2), whole)
    assert cut == CUT[name]


@pytest.mark.parametrize("name", NAMES)
def test_less_is_sent_than_by_the_source(name: str, seen: list[dict[str, Any]]):
    sent = {kind: seen[0][f"case:{name}"][kind]["sent"] for kind in ("source", "folded")}
    assert sent["folded"] < sent["source"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_folded_is_sharded(name: str, seen: list[dict[str, Any]]):
    sharded = seen[0][f"case:{name}"]["sharded"]
    assert any(".layers.0." in each for each in sharded)
    assert any(".layers.1." in each for each in sharded)
    assert not any("embed" in each and "lm_head" not in each for each in sharded)


def test_tables_in_host_memory_and_on_disk(seen: list[dict[str, Any]]):
    for rank in seen:
        told = rank["placed:llama"]
        assert torch.equal(told["device"], told["host"])
        assert torch.equal(told["device"], told["disk"])


def test_a_model_on_ranks_is_saved_whole(folder: Path, seen: list[dict[str, Any]]):
    assert torch.equal(seen[0]["saved:qwen3"]["one"], seen[0]["saved:qwen3"]["two"])
    ids, _ = left_padded()
    again, folded = load(folder / "qwen3" / "again"), load(folder / "qwen3" / "folded")
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, folded(input_ids=ids).logits)


def test_a_style_that_nobody_knows_leaves_the_first_layer_whole_and_shards_the_rest(seen: list[dict[str, Any]]):
    for rank in seen:
        told = rank["unknown_style:llama"]
        assert "every rank computes all of the first layer" in told["said"][0]
        assert "of_its_own" in told["said"][0]
        assert not any(".layers.0." in each for each in told["sharded"])
        assert sum(".layers.1." in each for each in told["sharded"]) == 7
        assert {each.shape[-1] for each in told["columns"].values()} == {32, 16}
        assert torch.equal(told["source"]["tokens"], told["folded"]["tokens"])
        assert torch.equal(told["source"]["static"], told["folded"]["static"])
        assert difference(told["source"]["logits"], told["folded"]["logits"]) < 2e-6


def test_one_rank_alone_is_as_without_any(folder: Path):
    """A plan for one rank cuts nothing."""
    from transformers.distributed import DistributedConfig

    ids, _ = left_padded()
    one = load(folder / "llama" / "folded", distributed_config=DistributedConfig(tp_size=1, tp_plan="auto"))
    with torch.no_grad():
        assert torch.equal(one(input_ids=ids).logits, load(folder / "llama" / "folded")(input_ids=ids).logits)
