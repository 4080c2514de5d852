"""A process that has imported what measuring needs, and forks a fresh one for each measurement.

Importing transformers takes seconds, forking a hundredth of one. A child has seen neither prefold's runtime nor a
checkpoint: what it proves, a process of its own would prove. This module imports nothing but the standard library, so
that a command can start the server first and import everything else beside it.
"""

import atexit
import os
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import IO

# What a child takes over from its parent as it is when it is forked, beside the environment.
_LIMITS = (resource.RLIMIT_DATA, resource.RLIMIT_AS)


class ForkServer:
    """A process that forks on demand; it ends, and its children with it, when this one does."""

    def __init__(self) -> None:
        self._here, there = socket.socketpair()
        self._lock = Lock()
        self.process_id = os.getpid()
        with there:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", "prefold.verify.probe.server", str(there.fileno())],
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def fork(self, printed: IO[bytes]) -> socket.socket:
        """Fork a process whose output goes to ``printed``; returns a connection to it."""
        mine, its = socket.socketpair()
        with its, self._lock, suppress(OSError):  # if it died, the connection ends
            socket.send_fds(self._here, [b"."], [its.fileno(), printed.fileno()])
        return mine

    @property
    def is_alive(self) -> bool:
        """Whether it runs, and was started by this process."""
        return self.process_id == os.getpid() and self._server.poll() is None

    def close(self) -> None:
        """End it and all that it forked."""
        self._here.close()
        if self.process_id == os.getpid():
            self._server.wait()


_shared: list[ForkServer] = []


def shared_server() -> ForkServer:
    """Return the server of this process, which is started by the first call."""
    if not _shared or not _shared[0].is_alive:
        _shared[:] = [ForkServer()]
        atexit.register(_shared[0].close)
    return _shared[0]


def surroundings() -> dict[str, object]:
    """Return the environment, folder and limits of this process, for a child to take over."""
    limits = {str(limit): resource.getrlimit(limit) for limit in _LIMITS}
    return {"environment": dict(os.environ), "folder": os.getcwd(), "limits": limits}
