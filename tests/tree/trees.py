"""Random trees over small models, and each of their branches run alone."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from prefold.tree.cache.tree_cache import TreeCache
from tests.conftest import SHAPES, VOCABULARY, random_model, small_config

NAME = "prefold_tree"
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "num_hidden_layers": 2}
# What attention can be, by the models that have it; no other code knows their names.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "own heads": ("gpt_neox", {"num_hidden_layers": 2}),
    "grouped heads": ("llama", {"num_hidden_layers": 2}),
    "one head": ("llama", {"num_key_value_heads": 1, "num_hidden_layers": 2}),
    "trained positions": ("gpt2", {"n_layer": 2}),
    "soft caps and windows": ("gemma2", {"attn_logit_softcapping": 1.0} | _BOTH),
    "windows": ("mistral", {"sliding_window": 4, "num_hidden_layers": 2}),
    "windows in some layers": ("gemma3_text", _SMALL | _BOTH),
    "sinks": ("gpt_oss", _SMALL | _BOTH | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "chunks": (
        "llama4_text",
        _SMALL | {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48},
    ),
    "shared keys": (
        "gemma3n_text",
        {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "activation_sparsity_pattern": [0.0] * 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5},
    ),
}  # fmt: skip


def model_of(kind: str) -> PreTrainedModel:
    """Build a small model with attention of a kind."""
    name, changes = KINDS[kind]
    model = random_model(small_config(name, **changes) if name in SHAPES else AutoConfig.for_model(name, **changes))
    # Random weights say nearly the same of every token, and beams with equal scores may change places.
    model.get_output_embeddings().weight.data.mul_(10)
    return model


@torch.no_grad()
def alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Return the logits at every token of a text, run alone and without a cache, ``[tokens, vocabulary]``."""
    model.set_attn_implementation("eager")
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that logits are equal, but for rounding, and choose the same tokens."""
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-5, float(difference)
    two = expected.topk(2).values
    clear = two[..., 0] - two[..., 1] > 2e-5 * expected.abs().max()
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@dataclass
class Branch:
    """The text of a branch, and the logits that the tree gave at each of its tokens."""

    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def copy(self) -> "Branch":
        return Branch(list(self.ids), list(self.logits))


class Grove:
    """Trees in one cache, and a branch for every row."""

    def __init__(self, model: PreTrainedModel, seed: int, **options: Any) -> None:
        model.set_attn_implementation(NAME)
        self.model, self.cache = model, TreeCache(**options)
        self.cache.takes_positions = True
        self.rows: list[Branch] = []
        self.ended: list[Branch] = []
        self._random = torch.Generator().manual_seed(seed)

    def plant(self, lengths: list[int]) -> None:
        """Read prompts of these lengths, padded at the left."""
        longest, self.rows = max(lengths), [Branch() for _ in lengths]
        ids, mask = torch.zeros(2, len(lengths), longest, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, longest - length :] = self._tokens(1, length)
            mask[row, longest - length :] = 1
        self._run(ids, mask, (mask.cumsum(1) - 1).clamp_min(0))

    def grow(self, new: int) -> None:
        """Let every row go on by random tokens."""
        self._run(self._tokens(len(self.rows), new), self.cache.attention_mask(new), self.cache.position_ids(new))

    def choose(self, rows: list[int]) -> None:
        """Branch and prune: go on with these rows, some of them several times."""
        self.ended += [self.rows[row] for row in range(len(self.rows)) if row not in rows]
        self.rows = [self.rows[row].copy() for row in rows]
        self.cache.reorder_cache(rows)

    def _tokens(self, rows: int, new: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (rows, new), generator=self._random)

    @torch.no_grad()
    def _run(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> None:
        out = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache)
        valid = mask[:, -ids.shape[1] :].bool()
        for row, branch in enumerate(self.rows):
            branch.ids += ids[row, valid[row]].tolist()
            branch.logits += list(out.logits[row, valid[row]])

    def assert_exact(self) -> None:
        """Assert that every branch, also those that were pruned, was given the logits that it has alone."""
        for branch in self.rows + self.ended:
            assert_close(torch.stack(branch.logits), alone(self.model, branch.ids))
        self.model.set_attn_implementation(NAME)
