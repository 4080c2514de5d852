"""Modules of a model that depend on the token alone, found by running it."""

from prefold.convert.experiment.trace import first_tensor

__all__ = ["first_tensor"]
