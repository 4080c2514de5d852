"""A folded checkpoint whose table lies in different places."""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.pairs import make_folded
from tests.runtime.placing import load_each


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small folded checkpoint."""
    return make_folded(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def placed(llama: Path) -> dict[str, Any]:
    """Return it loaded once for each placement."""
    return load_each(llama)
