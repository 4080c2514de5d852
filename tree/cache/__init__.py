"""A cache that stores a prefix once for all branches below it, and attention over it; needs torch."""
