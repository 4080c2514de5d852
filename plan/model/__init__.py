"""Models as the formulas see them: from a config, or a preset."""

from prefold.plan.model.config import shape_from_config

__all__ = ["shape_from_config"]
