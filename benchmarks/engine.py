"""What vLLM's engines need on a small machine, where several are there at a time."""

import os

# Without the first an engine on a CPU takes nearly all of the memory for its cache.
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "HF_HUB_OFFLINE": "1"}
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def set_environment() -> None:
    """Set the variables that vLLM reads when it is imported, unless they are set."""
    os.environ.update({name: os.environ.get(name, value) for name, value in (_ENVIRONMENT | _QUIET).items()})
