"""What attention over a tree reads, counted; needs NumPy alone."""

from prefold.tree.count.picture import KINDS, write_picture

__all__ = ["KINDS", "write_picture"]
