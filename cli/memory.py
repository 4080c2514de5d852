"""A limit for the memory of a command."""

import resource


def limit_memory(size: int | None) -> None:
    """Let neither this process, nor any that it starts, take more than ``size`` bytes of memory of its own.

    Linux enforces this. Files that are mapped do not count: the system takes their pages back when it needs them.
    """
    if size is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))


def is_shortage(error: BaseException) -> bool:
    """Say whether an error tells that there was no memory left to take."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
