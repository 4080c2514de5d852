"""A bug of prefold's stays one, and is no reason that a model does not fold; a model's own error is one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from prefold.convert import UnsupportedModel, UsageError, inspect_checkpoint
from prefold.convert.checkpoint.hub import resolve
from prefold.convert.errors import is_own, model_code
from tests.conftest import Checkpoint, small_config


def bug(*_: Any, **__: Any) -> None:
    """Stand for code of prefold's that has a mistake: to raise from here counts as from there."""
    namespace = {"__name__": "prefold.convert.planted"}
    exec("def planted(): return None + 1\nplanted()", namespace)


@pytest.mark.parametrize(
    "place",
    [
        "study.find_ties",  # called from prefold
        "experiment.trace._first_tensor_of",  # called from a hook, inside the model's own pass
        "experiment.token_pure._filled_cache",  # of which only a model's own error means that it has no cached steps
        "experiment.discover.explain",
        "fold.check.same_rows",
        "experiment.separable._fit",
    ],
)
def test_a_bug_is_no_unsupported_model(place: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    source = checkpoint("gpt2")
    monkeypatch.setattr(f"prefold.convert.{place}", bug)
    with pytest.raises(TypeError, match="NoneType"):
        inspect_checkpoint(str(source))


def test_a_bug_beside_the_hub_is_no_answer_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefold.convert.checkpoint.hub.HfApi", bug)
    with pytest.raises(TypeError, match="NoneType"):
        resolve("org/name", None)


def test_the_command_says_that_it_failed_and_not_that_the_model_did(checkpoint: Checkpoint):
    code = (
        "import sys, prefold.convert.study as s; s.find_ties = lambda *_: None + 1;"
        f"sys.argv = ['prefold', 'inspect', {str(checkpoint())!r}];"
        "from prefold.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "TypeError" in done.stderr
    assert "PREFOLD_DEBUG=1" in done.stderr


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AssertionError, OSError, ZeroDivisionError])
def test_what_a_model_stumbles_over_is_its_own(
    error: type[Exception], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    source = checkpoint()

    def forward(self: Any, *_: Any, **__: Any) -> None:
        exec("raise error('not alone')", {"__name__": "transformers.models.llama", "error": error})

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    verdict = inspect_checkpoint(str(source)).verdict
    assert f"its first block does not run alone ({error.__name__}: " in verdict


def run(namespace: str, code: str) -> Callable[[], None]:
    return lambda: exec(code, {"__name__": namespace, "torch": torch, "nn": nn})


@pytest.mark.parametrize(
    ("call", "own"),
    [
        (run("prefold.convert.x", "None + 1"), True),
        (run("transformers.x", "None + 1"), False),
        (run("transformers_modules.x", "torch.zeros(2) @ torch.zeros(3)"), False),
        (run("prefold.convert.x", "torch.zeros(2) @ torch.zeros(3)"), True),
        (run("somebody.else", "None + 1"), False),
        (lambda: nn.Linear(2, 3)(), False),  # not called as it wants to be
    ],
)
def test_whose_error_it_is(call: Callable[[], None], own: bool):
    with pytest.raises(Exception) as caught:
        call()
    assert is_own(caught.value) is own


def test_memory_that_is_short_is_nobodys_error():
    with pytest.raises(MemoryError), model_code():
        raise MemoryError


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 20_000}, r"asks for 20,000 blocks \(num_hidden_layers\)"),
        ({"num_hidden_layers": 10**12}, r"asks for 1,000,000,000,000 blocks"),
        ({"vocab_size": 10**12}, r"a tensor \[1000000000000, 32\], which is more than this machine can address"),
        ({"vocab_size": 10**18}, r"its config builds no model \(RuntimeError: "),
        ({"vocab_size": -5}, r"its config builds no model \(RuntimeError: "),
        ({"intermediate_size": 10**13}, "values in its first blocks: prefold takes 2,147,483,648"),
        ({"hidden_size": 10**8}, "values in its first blocks"),
        ({"head_dim": 10**8}, "values in its first blocks"),
        ({"vocab_size": 4}, "its vocabulary has 1 ordinary tokens"),
        ({"hidden_size": "wide"}, "transformers cannot read its config"),
        ({"num_labels": 10**12}, r"asks for 1,000,000,000,000 labels \(num_labels\)"),
        ({"architectures": 3}, "names no classes as architectures: 3"),
        ({"architectures": [["x"]]}, "names no classes as architectures"),
        ({"rms_norm_eps": float("nan")}, "nothing folds"),
        ({"num_key_value_heads": 0}, "its config builds no model"),
    ],
)
def test_a_config_out_of_all_proportion_is_answered_with_one_line(changes: dict[str, Any], reason: str, tmp_path: Path):
    config = small_config("llama").to_dict() | {"architectures": ["LlamaForCausalLM"]} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    inspection = inspect_checkpoint(str(tmp_path / "config.json"))
    assert len(inspection.reasons) == 1
    with pytest.raises(UnsupportedModel, match=reason):
        raise UnsupportedModel(inspection.reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_positions": 10**7}, "wpe has 10,000,000 rows"),
        ({"model_type": "mixtral", "num_local_experts": 10**7}, r"asks for 10,000,000 parts \(num_local_experts\)"),
        ({"model_type": "mixtral", "num_local_experts": 9_999}, None),
    ],
)
def test_positions_and_experts_out_of_all_proportion(changes: dict[str, Any], reason: str | None, tmp_path: Path):
    config = small_config(changes.get("model_type", "gpt2")).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    verdict = inspect_checkpoint(str(tmp_path / "config.json")).verdict
    assert re.search(reason or "saves|not worth it", verdict)


def test_depth_is_asked_for_in_every_part_of_a_config(tmp_path: Path):
    config = {"model_type": "llava", "text_config": {"model_type": "qwen2", "num_hidden_layers": 10**12}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "asks for 1,000,000,000,000 blocks" in inspect_checkpoint(str(tmp_path / "config.json")).verdict


def test_a_config_without_an_end():
    with pytest.raises(UsageError, match=r"/dev/zero: no config\.json of a model: .* larger than 100,000,000 bytes"):
        inspect_checkpoint("/dev/zero")


def test_a_config_that_nests_beyond_all_measure(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(Exception, match=r"config\.json: not JSON"):
        inspect_checkpoint(str(tmp_path / "config.json"))
