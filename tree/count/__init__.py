"""What attention over a tree reads, counted; needs NumPy alone."""
