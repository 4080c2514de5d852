"""What a checkpoint makes of the held-out text: its perplexity, and a greedy continuation."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prefold.demo import HELD_OUT

_PROMPT = "The king said to the old man,"
_NEW_TOKENS = 40


@dataclass(frozen=True)
class Sample:
    """Perplexity per token of the held-out text, and what follows a prompt."""

    perplexity: float
    prompt: str
    continuation: str

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)


def sample(folder: Path) -> Sample:
    """Load a checkpoint as a user does and let it read the held-out text and write."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=1 << 30)
    block = tokenizer(HELD_OUT.read_text("utf-8"), return_tensors="pt")["input_ids"][0]
    prompt = tokenizer(_PROMPT, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=_NEW_TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return Sample(
        math.exp(block_loss(model, torch.as_tensor(block)) / (len(block) - 1)), _PROMPT, str(tokenizer.decode(written))
    )


@torch.inference_mode()
def block_loss(model: PreTrainedModel, block: Tensor) -> float:
    """Return the summed loss in nats of a block of shape [1 + tokens], its first token not counted."""
    total, context = 0.0, int(model.config.max_position_embeddings)
    for start in range(0, len(block) - 1, context):
        window = block[start : start + context + 1]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        total += cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return total
