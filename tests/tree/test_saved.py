"""Roots as files: what was saved is not computed again, and serves nobody else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prefold.tree import CacheError, TreeCache
from prefold.tree.cache.saved import hash_model
from prefold.tree.errors import WrongRoot
from tests.conftest import tokens
from tests.runtime.placing import flip_byte
from tests.tree.trees import KINDS, NAME, model_of

_SYSTEM, _QUESTION = tokens(1, 20), tokens(1, 4) + 1
_OPTIONS: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "pad_token_id": 0}


@torch.no_grad()
def _saved(model: PreTrainedModel, folder: Path) -> Path:
    model.set_attn_implementation(NAME)
    cache = TreeCache()
    model(_SYSTEM, past_key_values=cache)
    cache.save(cache.hold(0), folder / "system.safetensors", model, _SYSTEM)
    return folder / "system.safetensors"


def _generated(model: PreTrainedModel, cache: TreeCache | None) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(torch.cat([_SYSTEM, _QUESTION], 1), past_key_values=cache, **_OPTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_that_was_saved_goes_on_as_if_computed(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    expected = _generated(model, None)
    file = _saved(model, tmp_path)
    for turn in range(2):
        cache, read = TreeCache(branches=3), list[int]()
        cache.branch([cache.load(file, model, _SYSTEM[0].tolist())] * 3)
        watch: Any = model.register_forward_pre_hook(
            lambda _, __, given, read=read: read.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        found = _generated(model, cache)
        watch.remove()
        assert torch.equal(found, expected), turn
        assert read == [4] + [1] * 7  # the question alone is read


def test_the_file_is_mapped_and_stays_as_it_is(tmp_path: Path) -> None:
    model = model_of("grouped heads")
    file = _saved(model, tmp_path)
    before, cache = file.read_bytes(), TreeCache()
    name = cache.load(file, model, _SYSTEM)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(file) in maps.read_text()
    cache.branch([name])
    cache.prune(name)
    cache.crop(-5)
    with torch.no_grad():
        model(_QUESTION, past_key_values=cache)  # written behind what is left of the root
    assert cache.memory().tokens == 19
    assert file.read_bytes() == before


def test_a_limit_is_for_what_is_computed(tmp_path: Path) -> None:
    model = model_of("grouped heads")
    file = _saved(model, tmp_path)
    cache = TreeCache(branches=3, max_pages=4)
    cache.branch([cache.load(file, model, _SYSTEM)] * 3)
    assert torch.equal(_generated(model, cache), _generated(model, None))


@torch.no_grad()
def test_two_roots_may_be_in_one_cache(tmp_path: Path) -> None:
    model = model_of("grouped heads")
    file, cache = _saved(model, tmp_path), TreeCache()
    model(tokens(1, 7), past_key_values=cache)
    names = [cache.hold(0), cache.load(file, model, _SYSTEM)]
    cache.branch([names[1]])
    found = model(_QUESTION, past_key_values=cache).logits
    expected = model(torch.cat([_SYSTEM, _QUESTION], 1)).logits[:, -4:]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_is_held_has_as_many_tokens_as_are_named(tmp_path: Path) -> None:
    model = model_of("grouped heads")
    cache = TreeCache()
    name = cache.load(_saved(model, tmp_path), model, _SYSTEM)
    with pytest.raises(CacheError, match="3 token ids of a root of 20 tokens"):
        cache.save(name, tmp_path / "other", model, [3, 4, 5])
    with pytest.raises(CacheError, match="No such file"):
        cache.save(name, tmp_path / "nowhere" / "other", model, _SYSTEM)
    assert [each.name for each in tmp_path.iterdir()] == ["system.safetensors"]


def _other_weight(model: PreTrainedModel) -> None:
    next(model.parameters()).data[0, 0] += 1


def _other_config(model: PreTrainedModel) -> None:
    model.config.rms_norm_eps = 0.5


def _other_type(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [_other_weight, _other_config, _other_type])
def test_a_root_of_another_model_is_refused(tmp_path: Path, change: Any) -> None:
    model = model_of("grouped heads")
    file = _saved(model, tmp_path)
    change(model)
    with pytest.raises(WrongRoot, match="another model; compute and save it again"):
        TreeCache().load(file, model, _SYSTEM)


def test_a_root_of_other_tokens_or_another_format_is_refused(tmp_path: Path) -> None:
    model = model_of("grouped heads")
    file = _saved(model, tmp_path)
    with pytest.raises(WrongRoot, match="of other tokens"):
        TreeCache().load(file, model, _QUESTION)
    save_file(load_file(file), tmp_path / "old", metadata={"format": "prefold root 0"})
    with pytest.raises(WrongRoot, match="of another format"):
        TreeCache().load(tmp_path / "old", model, _SYSTEM)


@pytest.mark.parametrize("place", [0, -1])
def test_changed_keys_or_values_are_refused(tmp_path: Path, place: int) -> None:
    model = model_of("grouped heads")
    file = _saved(model, tmp_path)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    flip_byte(file, header if place == 0 else place)
    with pytest.raises(WrongRoot, match="keys or values are not those that were saved"):
        TreeCache().load(file, model, _SYSTEM)


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_what_is_no_root_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(WrongRoot, match="no file of a root"):
        TreeCache().load(tmp_path / "file", model_of("grouped heads"), _SYSTEM)


@pytest.mark.parametrize("place", [0, 5000, 20_480])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_hash_sees_every_bit_and_where_it_is(place: int, dtype: torch.dtype) -> None:
    model = model_of("grouped heads")
    weight = torch.arange(20_481).remainder(97).to(dtype)
    model.register_buffer("more", torch.cat([weight[:1], weight])[1:])  # begins anywhere in memory
    before = hash_model(model)
    model.more[[place, place - 1]] = model.more[[place - 1, place]]
    assert hash_model(model) != before
    model.more[[place, place - 1]] = model.more[[place - 1, place]]
    assert hash_model(model) == before
    model.more.view(torch.uint8)[place] ^= 1
    assert hash_model(model) != before
