"""What every room may use: one base of errors, figures, and units. It needs neither torch nor NumPy."""
