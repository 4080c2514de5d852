"""What layers with a sliding window see of the segments of a step: of each path its last tokens."""

from dataclasses import replace

import numpy as np

from prefold.tree.count.timeline import Rows


def within_window(rows: Rows, window: int) -> Rows:
    """Return the rows as layers see them whose branches attend to their last ``window`` tokens.

    Of a segment that several branches see in part, the part that any of them sees is read. Rows must stand for one
    segment each.
    """
    tokens, branches = np.zeros_like(rows.tokens), np.zeros_like(rows.branches)
    at = np.flatnonzero(rows.paths)
    left = np.full(len(at), window)
    while len(at):
        np.maximum.at(tokens, at, np.minimum(left, rows.tokens[at]))
        np.add.at(branches, at, 1)
        left, at = left - rows.tokens[at], rows.above[at]
        going = (left > 0) & (at >= 0)
        left, at = left[going], at[going]
    above = np.where((rows.above >= 0) & (tokens[rows.above] > 0), rows.above, -1)
    return replace(
        rows,
        tokens=tokens,
        branches=branches,
        above=above,
        paths=np.minimum(rows.paths, window),
        segments=np.minimum(rows.segments, tokens),
        blocks=-(-tokens // rows.block),
    )
