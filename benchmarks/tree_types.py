"""Trees in 16 and 32 bits, beside transformers' own attention: ``python -m benchmarks.tree_types [MODEL]``.

Prints how many of 32 sampled continuations are those of eager attention, and how far the log-probabilities of tokens
lie from these, as a part of the largest logit.
"""

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefold.demo import CHECKPOINT
from prefold.tree import TreeCache, score

_SAMPLES, _NEW, _PROMPT = 32, 40, 60


def main() -> None:
    """Measure the demo checkpoint, or a model that is named."""
    name = sys.argv[1] if len(sys.argv) > 1 else str(CHECKPOINT)
    for dtype in ("float32", "bfloat16", "float16"):
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="eager")
        made = torch.Generator().manual_seed(0)
        prompt = torch.randint(3, model.config.vocab_size, (1, _PROMPT), generator=made)
        expected = _sampled(model, prompt)
        rows = expected[:, _PROMPT:].tolist()
        truth, scale = _alone(model, prompt, rows)
        for how in ("sdpa", "prefold_tree"):
            model.set_attn_implementation(how)
            same = int((_sampled(model, prompt) == expected).all(1).sum())
            found = _scored(model, prompt, rows) if how == "prefold_tree" else _alone(model, prompt, rows)[0]
            away = float((found - truth).abs().max()) / scale
            line = f"{dtype:9} {how:13} {same:3} of {_SAMPLES} samples as eager; log-probabilities {away:.1e} away"
            sys.stdout.write(f"{line}\n")


def _sampled(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    tree = model.config._attn_implementation == "prefold_tree"
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": _SAMPLES, "max_new_tokens": _NEW, "min_new_tokens": _NEW}
    cache = TreeCache(branches=_SAMPLES) if tree else None
    found: torch.Tensor = model.generate(prompt, past_key_values=cache, pad_token_id=0, **options)
    return found


@torch.no_grad()
def _alone(model: PreTrainedModel, prompt: torch.Tensor, rows: list[list[int]]) -> tuple[torch.Tensor, float]:
    """Return the log-probabilities of each text, run alone and without a cache, and the largest logit."""
    found, largest = [], 0.0
    for row in rows:
        text = torch.cat([prompt, torch.tensor([row])], 1)
        logits = model(text, use_cache=False).logits[0, _PROMPT - 1 : -1].float()
        largest = max(largest, float(logits.abs().max()))
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0])
    return torch.stack(found), largest


def _scored(model: PreTrainedModel, prompt: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([each.log_probs for each in score(model, prompt, rows)])


if __name__ == "__main__":
    main()
