"""A model from its config: its class, and the part of it that an experiment runs."""
