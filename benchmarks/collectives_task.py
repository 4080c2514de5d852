"""What is run on chips: a block, and how it is split over them."""

from dataclasses import dataclass

from prefold.plan.cost.attention import Sharding
from prefold.plan.cost.layouts import Layout


@dataclass(frozen=True)
class Model:
    """The block's widths.

    Attributes:
        hidden: E.
        inner: F.
        heads: of the queries.
        key_value_heads: 1 for multiquery, ``heads`` for multihead attention.
        head_dim: Q.
        gated: the FFN has two matrices on its way in.
        parallel: attention and FFN read the same input.
        vocabulary: token ids that there are.
        batch: sequences.
        length: tokens of each.
    """

    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_dim: int
    gated: bool
    parallel: bool
    vocabulary: int
    batch: int
    length: int

    @property
    def ffn_in(self) -> tuple[str, ...]:
        """Names of the FFN's matrices on its way in."""
        return ("up", "gate") if self.gated else ("up",)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of every matrix."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        attention = {"queries": (self.hidden, queries), "keys": (self.hidden, keys), "values": (self.hidden, keys)}
        ffn = dict.fromkeys(self.ffn_in, (self.hidden, self.inner))
        return {**attention, **ffn, "attention_out": (queries, self.hidden), "down": (self.inner, self.hidden)}


@dataclass(frozen=True)
class Task:
    """What is run.

    Attributes:
        model: widths.
        mesh: chips along x, y and z.
        layout: of the weights.
        attention: ``head`` or ``batch``: what it is split over.
        folded: a table is read instead of what depends on the token alone.
        fault: empty, or what is wrong on purpose: ``gather``, one that nothing needs, or ``shard``, a matrix whose
            shards lie on the wrong chips.
    """

    model: Model
    mesh: tuple[int, int, int]
    layout: Layout
    attention: Sharding
    folded: bool
    fault: str = ""
