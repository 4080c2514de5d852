"""A limit for the memory of a command."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

# What libraries say when there is none left: oneDNN, that it could not make something.
_SHORTAGE = (
    "can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
    "bad_alloc",
    "could not create a primitive",
)


@contextmanager
def limited_memory(size: int | None) -> Iterator[None]:
    """Let neither this process, nor any that it starts, take more than ``size`` bytes of memory of its own.

    Linux enforces this. Files that are mapped do not count: the system takes their pages back when it needs them.

    Raises:
        StorageError: more was needed, whatever that was said to be on its way here.
    """
    from prefold.convert import StorageError

    if size is None:
        yield
        return
    allowed, most = resource.getrlimit(resource.RLIMIT_DATA)
    given = [each for each in (size, allowed, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(given), most))
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SHORTAGE):
            raise StorageError(f"--max-memory: a process needs more than {size / 1e9:.2f} GB") from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))
