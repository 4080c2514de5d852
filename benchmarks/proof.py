"""What a proof costs: ``python -m benchmarks.proof [--command PREFOLD] [--before FILE] [--out docs/proof.md]``.

The commands are timed as a user runs them, in one run, beside what importing transformers takes on the same machine.
``--command`` is another prefold to time, as of an older version; with ``--before`` its figures stand beside the new.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
)

from benchmarks.machine import describe, sentence
from benchmarks.page import table

_TINY: dict[str, Any] = {"vocab_size": 257}
TINY = {
    "tiny GPT-2": GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=128, **_TINY),
    "tiny Llama": LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, **_TINY
    ),
}
PYTHIA = GPTNeoXConfig(vocab_size=50304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                       num_attention_heads=16, rotary_pct=0.25)  # fmt: skip
INSPECTED = {
    "Pythia-410M": PYTHIA,
    "Phi-1.5": PhiConfig(),
    "Mistral-7B": MistralConfig(num_key_value_heads=8),
    "Llama-3.1-405B": LlamaConfig(
        vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8),
    "DeepSeek-V3": DeepseekV3Config(),
}  # fmt: skip
_PAGE = Path(__file__).with_name("proof.md")


def seconds(*command: object) -> float:
    """Run a command and return the seconds that it took.

    Raises:
        CalledProcessError: it failed.
    """
    begun = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - begun


def save(config: PreTrainedConfig, folder: Path, dtype: torch.dtype) -> Path:
    """Save a model with random weights."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


def measure(prefold: str, folder: Path) -> dict[str, float]:
    """Time every command once, tiny models three times; returns the seconds, the least of several, by what was done."""
    found = {"import transformers": min(seconds(sys.executable, "-c", _IMPORT) for _ in range(3))}
    for name, config in INSPECTED.items():
        config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
        config.save_pretrained(folder / name)
        found[f"inspect {name}"] = seconds(prefold, "inspect", folder / name)
    for name, config in TINY.items():
        source, out = save(config, folder / name, torch.float32), folder / f"{name} folded"
        seconds(prefold, "convert", source, out, "--no-verify")
        found[f"verify {name}"] = min(seconds(prefold, "verify", source, out) for _ in range(3))
    source, out = save(PYTHIA, folder / "pythia", torch.bfloat16), folder / "pythia folded"
    found["convert Pythia-410M, without verifying"] = seconds(prefold, "convert", source, out, "--no-verify")
    found["verify Pythia-410M"] = seconds(prefold, "verify", source, out)
    return found


_IMPORT = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel"


def rendered(now: dict[str, float], before: dict[str, float] | None) -> str:
    """Return the table of what was measured."""
    unit = now["import transformers"]
    head = ["", *(["before, s"] if before else []), "s", "in imports of transformers"]
    rows = [[name, *([f"{before[name]:.1f}"] if before else []), f"{taken:.1f}", f"{taken / unit:.1f}"]
            for name, taken in now.items()]  # fmt: skip
    return table(head, rows)


def main() -> None:
    """Measure, and write the page or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", default=str(Path(sys.executable).with_name("prefold")))
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = sentence(describe())
    with tempfile.TemporaryDirectory(prefix="prefold-") as folder:
        found = measure(options.command, Path(folder))
    if options.out is None:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    before = json.loads(options.before.read_text()) if options.before else None
    page = _PAGE.read_text().replace("{machine}", machine).replace("{table}", rendered(found, before).strip())
    options.out.write_text(page)


if __name__ == "__main__":
    main()
