"""Random trees, and where the recorded ones lie."""

from pathlib import Path

from hypothesis import strategies as st

from prefold.tree import Attention, Tree, make_tree

DATA = Path(__file__).parent / "data"
LLAMA3_8B = Attention(layers=32, heads=32, kv_heads=8, head_dim=128)


@st.composite
def columns(
    draw, least: int = 0, most: int = 12, segments: int = 14
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Draw a tree's columns; which number a segment has says nothing about where it lies."""
    count = draw(st.integers(1, segments))
    above = [-1, *(draw(st.integers(0, index - 1)) for index in range(1, count))]
    sizes = [draw(st.integers(least, most)) for _ in range(count)]
    number = draw(st.permutations(range(count)))
    parent, tokens, birth, end = ([0] * count for _ in range(4))
    for index in range(count):
        at = number[index]
        parent[at] = -1 if index == 0 else number[above[index]]
        tokens[at] = sizes[index]
        birth[at] = 1 - sizes[0] if index == 0 else end[parent[at]] + 1
        end[at] = birth[at] + sizes[index] - 1
    return parent, tokens, birth, end


@st.composite
def trees(draw, **sizes: int) -> Tree:
    """Draw a tree whose prompt need not be as long as its root."""
    prompt = draw(st.none() | st.integers(min(sizes.get("least", 0), 1), 40))
    return make_tree("drawn", *draw(columns(**sizes)), prompt=prompt)
