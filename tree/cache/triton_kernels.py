"""The Triton kernels of attention to a flattened tree (DeFT-Flatten); ``triton_attention`` runs them.

Phase 1, a program for each item (a block's tile of queries) and head of keys and values: a row of the products is a
query and one of the heads that share the keys, so that these are read once for all of them. Phase 2, a program for
each query and head: what the query has from its blocks, merged in their order. Both keep a running maximum that starts
at minus infinity, and sums in float32; there are no atomics, so that a result never depends on what ran first.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _as(x, WIDE: tl.constexpr):
    return x.to(tl.float32) if WIDE else x


@triton.jit(do_not_specialize=["first_item"])
def attend(
    query, keys, values, slots, positions, masks, queries, items, firsts, partial, totals,
    first_item, scale, softcap,
    query_row, query_head, query_value, key_head, key_slot, key_value, value_head, value_slot, value_value,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    HEAD_PAD: tl.constexpr, WIDTH_PAD: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attend from an item's queries: outputs ``[pairs, heads, width]`` and base-2 log-sum-exp ``[pairs, heads]``.

    ``WIDE``: as float32, since the interpreter multiplies the bits of bfloat16. Products of float32 are not rounded
    to 19 bits ("ieee").
    """
    item = items + (first_item + tl.program_id(0)) * 5
    head = tl.program_id(1).to(tl.int64)
    begin, end = tl.load(item).to(tl.int32), tl.load(item + 1).to(tl.int32)
    mask_at, pair, count = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    row = tl.arange(0, ROWS)
    own = row // GROUP
    here = own < count
    own = tl.where(here, own, 0)
    query_heads = head * GROUP + row % GROUP
    which = tl.load(queries + pair + own, mask=here, other=0)
    along, across = tl.arange(0, HEAD_PAD), tl.arange(0, WIDTH_PAD)
    at = query + which[:, None] * query_row + query_heads[:, None] * query_head + along[None, :] * query_value
    asked = tl.load(at, mask=here[:, None] & (along < HEAD_DIM)[None, :], other=0.0)
    bit = own.to(tl.int64)
    first = tl.load(firsts + which, mask=here, other=0) if WINDOWED else which
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH_PAD], tl.float32)
    for start in range(begin, end, STEP):
        token = start + tl.arange(0, STEP)
        inside = token < end
        slot = tl.load(slots + token, mask=inside, other=0)
        mask = tl.load(masks + mask_at + (token - begin), mask=inside, other=0)
        seen = ((mask[None, :] >> bit[:, None]) & 1) != 0
        if WINDOWED:
            position = tl.load(positions + token, mask=inside, other=0)
            seen = seen & (position[None, :] >= first[:, None])
        key_at = keys + head * key_head + slot[None, :] * key_slot + along[:, None] * key_value
        key = tl.load(key_at, mask=inside[None, :] & (along < HEAD_DIM)[:, None], other=0.0)
        score = tl.dot(_as(asked, WIDE), _as(key, WIDE), input_precision="ieee") * scale
        if CAPPED:
            score = softcap * _tanh(score / softcap)
        score = tl.where(seen, score * 1.4426950408889634, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # else nothing minus nothing, where nothing is seen
        weight = tl.exp2(score - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(weight, 1)
        value_at = values + head * value_head + slot[:, None] * value_slot + across[None, :] * value_value
        value = tl.load(value_at, mask=inside[:, None] & (across < WIDTH)[None, :], other=0.0)
        weight = _as(weight.to(value.dtype), WIDE)
        out = out * fade[:, None] + tl.dot(weight, _as(value, WIDE), input_precision="ieee")
        highest = higher
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    to = (pair + own) * HEADS + query_heads
    tl.store(totals + to, highest + tl.log2(total), mask=here)
    to = to[:, None] * WIDTH + across[None, :]
    tl.store(partial + to, out, mask=here[:, None] & (across < WIDTH)[None, :])


@triton.jit
def merge(
    partial, totals, order, offsets, found, found_total,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Merge a query's pairs: outputs ``[queries, heads, width]`` and log-sum-exp ``[queries, heads]``."""
    which, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = tl.load(offsets + which).to(tl.int32), tl.load(offsets + which + 1).to(tl.int32)
    across = tl.arange(0, WIDTH_PAD)
    inner = across < WIDTH
    highest, total = float("-inf"), 0.0
    out = tl.zeros([WIDTH_PAD], tl.float32)
    for start in range(begin, end, PAIRS):
        number = start + tl.arange(0, PAIRS)
        inside = number < end
        at = tl.load(order + number, mask=inside, other=0) * HEADS + head
        part_total = tl.load(totals + at, mask=inside, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(part_total, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(part_total - base)
        fade = tl.exp2(highest - base)
        part = tl.load(
            partial + at[:, None] * WIDTH + across[None, :], mask=inside[:, None] & inner[None, :], other=0.0
        )
        total = total * fade + tl.sum(weight, 0)
        out = out * fade + tl.sum(part * weight[:, None], 0)
        highest = higher
    to = which * HEADS + head
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(found + to * WIDTH + across, out.to(found.dtype.element_ty), mask=inner)
    tl.store(found_total + to, (highest + tl.log2(total)) * 0.6931471805599453)
