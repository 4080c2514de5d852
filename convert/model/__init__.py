"""A model from its config: its class, and the part of it that an experiment runs."""

from prefold.convert.model.inputs import accepted, encoder_output, whole_inputs
from prefold.convert.model.load import loaded_by
from prefold.convert.model.running import hooks

__all__ = ["accepted", "encoder_output", "hooks", "loaded_by", "whole_inputs"]
