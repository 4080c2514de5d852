"""The process that forks measurements: ``python -m prefold.verify.probe.server DESCRIPTOR``."""

import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

from safetensors.torch import save
from transformers import dynamic_module_utils

from prefold.verify.probe.job import Job
from prefold.verify.probe.probe import measured


def serve(control: socket.socket) -> None:
    """Fork whenever a connection comes, until the parent is gone."""
    _require_clean()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for: their connections end
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            control.close()
            _work(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _require_clean() -> None:
    """Require that a child begins as a fresh process would: without the runtime, without threads."""
    seen = [name for name in sys.modules if name.startswith(("prefold.runtime", "transformers_modules"))]
    if seen or threading.active_count() > 1:
        raise RuntimeError(f"a server that has seen {seen}, with {threading.active_count()} threads")


def _work(connection: int, printed: int) -> NoReturn:
    """Answer the request that comes by the connection, which closes last."""
    status = 1
    parent = socket.socket(fileno=connection)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        _answer(parent, json.loads(received(parent)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def received(connection: socket.socket) -> bytes:
    """Receive until the other end closes."""
    pieces = []
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _answer(parent: socket.socket, request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for limit, values in request["limits"].items():
        resource.setrlimit(int(limit), values)
    vars(dynamic_module_utils)["HF_MODULES_CACHE"] = request["modules"]  # read when it was imported
    figures, outputs = measured(Job(**request["job"]))
    answer, tensors = json.dumps(figures).encode(), save(outputs)
    parent.sendall(len(answer).to_bytes(8, "little") + len(tensors).to_bytes(8, "little") + answer)
    parent.sendall(tensors)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
