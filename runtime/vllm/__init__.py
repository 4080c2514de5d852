"""Serves folded checkpoints with vLLM: the plugin, and what it puts in the place of folded modules."""

from prefold.runtime.vllm.plugin import register

__all__ = ["register"]
