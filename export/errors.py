"""Errors of an export, each with the exit code of the command."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from prefold.common.errors import UNSUPPORTED, PrefoldError, UsageError
from prefold.convert import ModelFailed, model_code

# The packages that each extra brings.
EXTRAS = {
    "onnx": ("onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
}


class MissingRuntime(UsageError):
    """A runtime, or what exports to it, is not installed."""


class NotExported(PrefoldError):
    """The exporters do not take the model, or the runtime lacks one of its operators."""

    exit_code = UNSUPPORTED


def missing_packages(target: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    return [name for name in EXTRAS[target] if find_spec(name) is None]


def require_runtime(target: str) -> None:
    """Require the packages of an extra.

    Raises:
        MissingRuntime: one is not installed.
    """
    if missing := missing_packages(target):
        raise MissingRuntime(f"--to {target}: {', '.join(missing)} not installed: pip install 'prefold[{target}]'")


@contextmanager
def exporter_code(what: str) -> Iterator[None]:
    """Turn errors of an exporter, or of a model under it, into ``NotExported``; prefold's own errors pass."""
    try:
        with model_code():
            yield
    except ModelFailed as failure:
        raise NotExported(f"{what}: {failure}") from failure
