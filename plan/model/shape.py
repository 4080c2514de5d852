"""The shape of a decoder: how many weights it has, and what a step does with them.

Norms and biases are left out: they are less than a thousandth of all weights.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from prefold.common.errors import UnknownName


@dataclass(frozen=True)
class Experts:
    """The experts of a layer.

    Attributes:
        shared_intermediate_size: F of the FFN beside them that all tokens go through; 0 without one.
        first_k_dense_replace: layers, the first ones, that have one ordinary FFN instead.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_intermediate_size: int = 0
    first_k_dense_replace: int = 0


@dataclass(frozen=True)
class Latent:
    """Attention whose keys and values are stored compressed (DeepSeek); ``q_lora_rank`` is None for plain queries."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class State:
    """Mixers that keep a state of each sequence, however long it is: Mamba, the delta rule, short convolutions.

    Attributes:
        layers: with such a mixer.
        attention_layers: with attention, and so with a KV cache; a layer may have both.
        ffn_layers: with an FFN.
        entering: values of a token behind the matrices on the way in.
        leaving: values of a token before the one on the way out.
        weights: of one mixer, its convolution among them.
        recurrent: values that a layer keeps of a sequence, in float32.
        conv: inputs of its convolution that a layer keeps of a sequence.
        starts: the first layer has such a mixer.
        attends: the first layer has attention.
    """

    layers: int
    attention_layers: int
    ffn_layers: int
    entering: int
    leaving: int
    weights: int
    recurrent: int
    conv: int
    starts: bool = True
    attends: bool = False


@dataclass(frozen=True)
class Shape:
    """A decoder.

    Attributes:
        hidden_size: E in the paper.
        intermediate_size: F, of an FFN that is not made of experts.
        num_attention_heads: H.
        num_key_value_heads: 1 for multiquery, H for multihead attention.
        head_dim: Q.
        gated: the FFN has two matrices on its way in.
        parallel: attention and FFN read the same input.
        tied: the output head is the embedding.
        cross: every layer also attends to an encoder's output.
        sliding_window: tokens that some layers attend to, and keep; 0 where all layers see the whole context.
        sliding_layers: layers with such a window.
        output_gate: what attention returns is multiplied by values that come of the queries' matrix, twice as wide.
        state: of layers without attention; None where all layers have attention and an FFN.
        max_position_embeddings: tokens that a sequence may have; 0 where no limit is known.
        nominal: weights by its name, which the paper counts MFU by; None to count all.
        source: of these figures.
        decodes: it makes one token after the other; an encoder does not, and keeps no keys and values.
        stored: type that the checkpoint's weights are stored in.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    gated: bool = True
    parallel: bool = False
    tied: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    cross: bool = False
    sliding_window: int = 0
    sliding_layers: int = 0
    output_gate: bool = False
    state: State | None = None
    max_position_embeddings: int = 0
    nominal: float | None = None
    source: str = ""
    decodes: bool = True
    stored: str = "bf16"

    def too_few_positions(self, needed: int) -> str:
        """Return the positions that it has, where it needs more; empty where they suffice or are not known."""
        most = self.max_position_embeddings
        return f"{self.name} has {most:,} positions (max_position_embeddings)" if 0 < most < needed else ""

    @property
    def layers_by_window(self) -> list[tuple[int, int | None]]:
        """Numbers of layers with the tokens that they attend to; None for the whole context."""
        return [(self.attention_layers - self.sliding_layers, None), (self.sliding_layers, self.sliding_window)]

    @property
    def attention_layers(self) -> int:
        """Layers with attention."""
        return self.state.attention_layers if self.state else self.num_layers

    @property
    def ffn_layers(self) -> int:
        """Layers with an FFN."""
        return self.state.ffn_layers if self.state else self.num_layers

    @property
    def state_layers(self) -> int:
        """Layers with a mixer that keeps a state."""
        return self.state.layers if self.state else 0

    @property
    def query_width(self) -> int:
        """Values of all queries of a token."""
        per_head = self.latent.qk_nope_head_dim + self.latent.qk_rope_head_dim if self.latent else self.head_dim
        return self.num_attention_heads * per_head

    @property
    def asking_width(self) -> int:
        """Values of a token behind the queries' matrix: queries, and the gate of what attention returns."""
        return 2 * self.query_width if self.output_gate else self.query_width

    @property
    def value_width(self) -> int:
        """Values that attention returns for a token, of all heads."""
        return self.num_attention_heads * (self.latent.v_head_dim if self.latent else self.head_dim)

    @property
    def kept_heads(self) -> int:
        """Heads of keys and values that are not split; compressed ones are one for all."""
        return 1 if self.latent else self.num_key_value_heads

    @property
    def key_value_width(self) -> int:
        """Values that one layer of the KV cache keeps of a token."""
        if self.latent:
            return self.latent.kv_lora_rank + self.latent.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.head_dim

    @property
    def query_weights(self) -> int:
        """Weights of one layer that make queries."""
        if self.latent and self.latent.q_lora_rank:
            return self.latent.q_lora_rank * (self.hidden_size + self.query_width)
        return self.hidden_size * self.asking_width

    @property
    def key_value_weights(self) -> int:
        """Weights of one layer that make the values of its KV cache."""
        return self.hidden_size * self.key_value_width

    @property
    def expansion_weights(self) -> int:
        """Weights of one layer that make keys and values of the compressed ones; 0 without compression."""
        latent = self.latent
        if latent is None:
            return 0
        return latent.kv_lora_rank * self.num_attention_heads * (latent.qk_nope_head_dim + latent.v_head_dim)

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's attention."""
        inside = self.query_weights + self.key_value_weights + self.expansion_weights
        return inside + self.value_width * self.hidden_size

    @property
    def cross_weights(self) -> int:
        """Weights of one layer that ask an encoder's output; as many make its keys and values, once for a sequence."""
        return 2 * self.hidden_size * self.query_width if self.cross else 0

    @property
    def ffn_matrices(self) -> int:
        """Matrices of an FFN."""
        return 3 if self.gated else 2

    def ffn_weights(self, width: int) -> int:
        """Weights of an FFN whose inner layer has ``width`` values."""
        return self.ffn_matrices * self.hidden_size * width

    @property
    def dense_layers(self) -> int:
        """Layers whose FFN is not made of experts."""
        return self.experts.first_k_dense_replace if self.experts else self.ffn_layers

    @property
    def expert_layers(self) -> int:
        """Layers whose FFN is made of experts."""
        return self.ffn_layers - self.dense_layers

    @property
    def fixed_weights(self) -> int:
        """Weights of all layers that every token goes through."""
        dense = self.dense_layers * self.ffn_weights(self.intermediate_size)
        shared = 0
        if self.experts:
            routed = self.hidden_size * self.experts.num_experts
            shared = self.expert_layers * (self.ffn_weights(self.experts.shared_intermediate_size) + routed)
        states = self.state.layers * self.state.weights if self.state else 0
        return self.attention_layers * (self.attention_weights + self.cross_weights) + states + dense + shared

    def expert_weights(self, experts: float) -> float:
        """Weights of so many experts in each layer that has them."""
        width = self.experts.moe_intermediate_size if self.experts else 0
        return self.expert_layers * experts * self.ffn_weights(width)

    def experts_read(self, tokens: float) -> float:
        """Experts of a layer that a step of ``tokens`` reads: the mean over tokens that choose evenly."""
        experts = self.experts
        if experts is None:
            return 0
        return experts.num_experts * (1 - float((1 - experts.num_experts_per_tok / experts.num_experts) ** tokens))

    @property
    def layer_weights(self) -> float:
        """Weights of all layers."""
        every_expert = self.expert_weights(self.experts.num_experts if self.experts else 0)
        return self.fixed_weights + every_expert + self.num_layers * self.cross_weights

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def weights(self) -> float:
        """All weights, the embedding's once where the head is tied to it."""
        return self.layer_weights + self.head_weights * (1 if self.tied else 2)

    @property
    def active_weights(self) -> float:
        """Weights that one token is multiplied by."""
        experts = self.expert_weights(self.experts.num_experts_per_tok if self.experts else 0)
        return self.fixed_weights + experts + self.head_weights

    def weights_read(self, tokens: float) -> float:
        """Weights that a step of ``tokens`` reads, the rows of the embedding aside."""
        return self.fixed_weights + self.expert_weights(self.experts_read(tokens)) + self.head_weights


@cache
def presets() -> dict[str, Shape]:
    """Return the catalogue, in its order."""
    tables = tomllib.loads(files("prefold.plan.model").joinpath("shapes.toml").read_text(encoding="utf-8"))
    return {name: _shape(name, table) for name, table in tables.items()}


def find_shape(name: str) -> Shape:
    """Return the shape of that name; ``UnknownName``, with the nearest names, where there is none."""
    known = presets()
    if name.lower() not in known:
        raise UnknownName("shape", name, list(known))
    return known[name.lower()]


def _shape(name: str, table: dict[str, Any]) -> Shape:
    experts, latent, state = (table.pop(part, None) for part in ("experts", "latent", "state"))
    table.setdefault("head_dim", table["hidden_size"] // table["num_attention_heads"])
    return Shape(
        name=name,
        experts=Experts(**experts) if experts else None,
        latent=Latent(**latent) if latent else None,
        state=State(**state) if state else None,
        **table,
    )
