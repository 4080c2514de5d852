"""What cannot be served is refused when an engine starts, with the reason."""

import json
import shutil

import pytest

from tests.runtime.placing import flip_byte
from tests.vllm.checkpoints import SHAPES, fold, save
from tests.vllm.engines import answers, engine

vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


def start(folder, **options):
    """Start an engine and end it at once."""
    with engine(folder, **options):
        pass


def edited(folder, out, change):
    """Return a copy of a folded checkpoint with another ``prefold`` section."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    change(config["prefold"])
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_prompt_embeddings(checkpoint):
    with pytest.raises(ValueError, match="enable_prompt_embeds: there are no token ids to look up"):
        start(checkpoint("llama") / "folded", enable_prompt_embeds=True)


@pytest.mark.smoke
def test_a_sum_of_look_ups(checkpoint):
    with pytest.raises(ValueError, match="sees a sum of look-ups"):
        start(checkpoint("gpt2") / "folded")


def test_a_table_beside_the_embedding(checkpoint, tmp_path):
    def beside(section):
        section["folds"][0]["table"]["tokens_of"] = "model.embed_tokens"

    folder = edited(checkpoint("llama") / "folded", tmp_path / "beside", beside)
    with pytest.raises(ValueError, match=r"its table stands beside its embedding \(--cut deepest\)"):
        start(folder)


def test_a_cut_that_takes_a_part_of_what_vllm_fuses(checkpoint, tmp_path):
    def without_values(section):
        section["folds"][0]["columns"].pop()

    folder = edited(checkpoint("llama") / "folded", tmp_path / "partly", without_values)
    with pytest.raises(ValueError, match="qkv_proj: vLLM computes it together with what is not folded"):
        start(folder)


def test_a_module_that_vllm_does_not_have(checkpoint, tmp_path):
    def renamed(section):
        section["folds"][0]["columns"][0]["module"] = "model.layers.0.self_attn.conv"

    folder = edited(checkpoint("llama") / "folded", tmp_path / "renamed", renamed)
    with pytest.raises(ValueError, match=r"self_attn\.conv: LlamaForCausalLM has no such module"):
        start(folder)


def test_a_projection_that_vllm_fuses_and_the_cut_drops(tmp_path):
    model_type, settings = SHAPES["deepseek_v3"]
    dense = settings | {"first_k_dense_replace": 3}  # an engine that failed leaves this process without experts' group
    deepest = fold(save((model_type, dense), tmp_path / "source"), tmp_path / "deepest", cut="deepest")
    with pytest.raises(ValueError, match=r"q_a_proj: dropped, .* store it \(prefold convert --cut\)"):
        start(deepest)


@pytest.mark.ranks
def test_a_projection_whose_inputs_lie_on_several_ranks(checkpoint, tmp_path, capfd):
    """On ranks that is seen in a process of the engine's, and not by who starts it."""

    def deeper(section):
        section["folds"][0]["columns"][-1]["module"] = "model.layers.0.mlp.down_proj"

    folder = edited(checkpoint("cohere") / "folded", tmp_path / "deeper", deeper)
    with pytest.raises(Exception, match="WorkerProc initialization failed"):
        start(folder, ranks=2)
    assert "down_proj: its inputs are parted over ranks" in capfd.readouterr().out


def test_weights_that_come_from_nowhere(checkpoint):
    with pytest.raises(OSError, match="no table was loaded: this load_format"):
        start(checkpoint("llama") / "folded", load_format="dummy")


def test_another_format(checkpoint, tmp_path):
    def newer(section):
        section["format"] = 99

    with pytest.raises(ValueError, match="format 99, and this prefold serves format 8: fold it anew"):
        start(edited(checkpoint("llama") / "folded", tmp_path / "newer", newer))


def test_a_placement_that_there_is_not(checkpoint):
    with pytest.raises(ValueError, match="'moon' is none of device, host, disk"):
        start(checkpoint("llama") / "folded", hf_overrides={"prefold_placement": "moon"})


def test_a_table_that_is_not_the_one_that_was_written(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llama") / "folded", tmp_path / "broken")
    flip_byte(folder / "prefold_table.safetensors")
    with pytest.raises(OSError, match="not the table that was written"):
        start(folder, hf_overrides={"prefold_placement": "disk"})


def test_all_reasons_at_once(checkpoint):
    with pytest.raises(ValueError, match=r"sum of look-ups.*; enable_prompt_embeds"):
        start(checkpoint("gpt2") / "folded", enable_prompt_embeds=True)


def test_pooling(checkpoint):
    with pytest.raises(ValueError, match="generates, and does nothing else"):
        start(checkpoint("llama") / "folded", runner="pooling")


def test_a_version_of_vllm_that_was_not_tested(checkpoint, monkeypatch):
    from transformers import AutoConfig

    from prefold.runtime.vllm import register

    monkeypatch.setattr(AutoConfig, "from_pretrained", AutoConfig.from_pretrained)
    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    register()
    with pytest.raises(ValueError, match=r"serves with vLLM 0\.32\.\*, and this is 0\.31\.2"):
        start(checkpoint("llama") / "folded")
    assert answers(checkpoint("llama") / "source")
