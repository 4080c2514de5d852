"""Models as the formulas see them: from a config, or a preset."""
