"""The ``prefold`` command."""
