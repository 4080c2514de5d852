"""The bytes that a tree's attention reads and writes, scheme by scheme, over all layers and steps (DeFT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from prefold.tree.count.schemes import Counts, Scheme, count_rows, find_schemes
from prefold.tree.count.segments import Tree
from prefold.tree.count.timeline import replay

_PARTIAL = 4  # bytes of a value of a partial output, which are fp32


@dataclass(frozen=True)
class Attention:
    """The attention of a model: H ``heads`` of queries, and values of d, ``head_dim``, of so many bytes.

    Attributes:
        value_bytes: of a query, a key, a value or an output; the paper's are fp16.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int = 2

    def kv_bytes(self, heads: int) -> int:
        """Return bytes of the keys and values of one token, of so many heads of each layer."""
        return 2 * self.layers * heads * self.head_dim * self.value_bytes


@dataclass(frozen=True)
class Reads:
    """Bytes of one scheme, over all layers and steps.

    Attributes:
        published: keys and values, counted per query head as DeFT does.
        published_partials: what DeFT counts beside them: Medusa's scores without those of QK^T, Flatten's mask.
        physical: the same reads of keys and values, per head of keys and values.
        kv: keys and values as launched: read again for each tile of queries.
        queries: read once for each pair of a query and a group.
        outputs: written once.
        partials: partial outputs and their log-sum-exp, written and read in fp32.
        masks: masks, and scores that are written and read where they are.
    """

    published: Fraction
    published_partials: Fraction
    physical: Fraction
    kv: Fraction
    queries: Fraction
    outputs: Fraction
    partials: Fraction
    masks: Fraction

    @property
    def full(self) -> Fraction:
        """All bytes that are read and written."""
        return self.kv + self.queries + self.outputs + self.partials + self.masks


@dataclass(frozen=True, eq=False)
class Counted:
    """The counts of some trees at each step, and the tokens that they generate; figures are exact means per tree."""

    attention: Attention
    trees: tuple[Counts, ...]
    generated: int
    schemes: tuple[Scheme, ...]

    @property
    def totals(self) -> dict[str, Fraction]:
        """The columns of ``Counts``, over all steps, and the number of ``steps``: means per tree."""
        sums = [{**each.totals(), "steps": len(each.branches)} for each in self.trees]
        return {name: Fraction(sum(each[name] for each in sums), len(sums)) for name in sums[0]}

    @property
    def generated_tokens(self) -> Fraction:
        """Tokens that a tree generates."""
        return Fraction(self.generated, len(self.trees))

    @property
    def sharing_factor(self) -> float | None:
        """F in the paper: tokens of all paths to tokens of the tree; None where no step is decoded."""
        totals = self.totals
        return float(totals["path_tokens"] / totals["tree_tokens"]) if totals["tree_tokens"] else None

    @property
    def reads(self) -> dict[str, Reads]:
        """The bytes of each scheme, means per tree."""
        totals = self.totals
        return {scheme.name: reads_of(scheme, self.attention, totals) for scheme in self.schemes}


def count_trees(
    trees: Sequence[Tree], attention: Attention, *, schemes: Sequence[str] = (), cap: int | None = None
) -> Counted:
    """Return what schemes read of one or more trees, step by step.

    ``schemes`` are names of ``SCHEMES``, all if none is given; ``cap`` is the longest output, in tokens, and the last
    step is one before it.

    Raises:
        UnknownName: there is no such scheme.
    """
    found = tuple(find_schemes(schemes))
    counts = tuple(count_rows(replay(tree, cap)) for tree in trees)
    generated = sum(_generated(tree, tree.steps(cap)) for tree in trees)
    return Counted(attention, counts, generated, found)


def _generated(tree: Tree, steps: int) -> int:
    """Return tokens of a tree beside its prompt, with those that the last step has yet to append."""
    held = (tree.end.clip(max=steps + 1) - tree.birth + 1).clip(0, tree.tokens)
    held[tree.root] = sum(tree.accepted[:steps])
    return int(held.sum())


def reads_of(scheme: Scheme, attention: Attention, totals: dict[str, Fraction]) -> Reads:
    """Return the bytes of a scheme from sums over steps of the columns of ``Counts`` (the paper's IO table)."""
    layers, heads = attention.layers, attention.heads
    per_query = layers * heads * attention.head_dim * attention.value_bytes
    physical = attention.kv_bytes(attention.kv_heads)
    pairs, mask = totals[scheme.pairs], layers * scheme.mask * totals["tree_tokens"]
    dense = dense_parts(attention, totals) if scheme.dense else {}
    return Reads(
        published=attention.kv_bytes(heads) * totals[scheme.kv],
        published_partials=mask + sum(size for part, size in dense.items() if part != "qk"),
        physical=physical * totals[scheme.kv],
        kv=physical * totals[scheme.launched],
        queries=per_query * pairs,
        outputs=per_query * totals["branches"],
        partials=2 * _PARTIAL * layers * heads * (attention.head_dim + 1) * pairs,
        masks=mask + sum(dense.values()),
    )


def dense_parts(attention: Attention, totals: dict[str, Fraction]) -> dict[str, Fraction]:
    """Return the bytes that a dense mask costs, as DeFT logs them: scores of every query by every token.

    QK^T, its scaling and its masking write and read a score each, the softmax two; all heads share one mask.
    """
    score = attention.layers * attention.value_bytes * totals["dense_pairs"]
    heads = attention.heads
    once = dict.fromkeys(("qk", "scaled", "masked"), 2 * heads * score)
    return {**once, "softmax": 4 * heads * score, "mask": score}
