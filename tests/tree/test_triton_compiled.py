"""The Triton kernels compile for GPUs that need not be there, and fit into registers and shared memory."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from prefold.tree.cache import triton_attention as flat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

_SHORT = {"float32": ("fp32", 4), "float16": ("fp16", 2), "bfloat16": ("bf16", 2)}
_INTEGERS = ("slots", "positions", "masks", "queries", "items", "firsts", "order", "offsets")
_SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a program can have


def _compiled(kernel: Any, kind: str, generation: int, constants: dict[str, Any], options: dict[str, Any]) -> Any:
    """Compile a kernel for tensors of a type that lie as torch allocates them."""
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(_INTEGERS, "*i64")
    types |= dict.fromkeys(("query", "keys", "values", "found"), f"*{kind}")
    types |= dict.fromkeys(("partial", "totals", "found_total"), "*fp32") | dict.fromkeys(("scale", "softcap"), "fp32")
    types |= dict.fromkeys(constants, "constexpr")
    aligned = [("tt.divisibility", 16)]
    source = ASTSource(
        kernel,
        {name: types[name] for name in kernel.arg_names},
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        {(at,): aligned for at, name in enumerate(kernel.arg_names) if types[name][0] in "*i"},
    )
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("generation", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "head_dim", "queries", "special"),
    [
        ("bfloat16", 32, 8, 128, 64, False),
        ("bfloat16", 32, 8, 128, 1, False),
        ("float16", 8, 8, 80, 40, True),
        ("bfloat16", 8, 4, 256, 9, True),
        ("float32", 8, 4, 128, 9, False),
        ("float16", 71, 1, 64, 3, False),
    ],
)
def test_phase_1_compiles_and_fits(
    dtype: str, heads: int, kv_heads: int, head_dim: int, queries: int, special: bool, generation: int, tmp_path: Path
) -> None:
    kind, value_bytes = _SHORT[dtype]
    launch = flat.make_launch(head_dim, value_bytes)
    most = min(queries, flat.query_tile(heads, kv_heads, head_dim, value_bytes))
    constants, options = flat.compiled_for(heads, kv_heads, head_dim, head_dim, most, launch)
    constants |= {"CAPPED": special, "WINDOWED": special, "WIDE": False}
    constants |= dict.fromkeys(("query_value", "key_value", "value_value"), 1)
    made = _compiled(flat.attend, kind, generation, constants, options)
    assert made.metadata.shared <= _SHARED[generation]
    assert ("mma" in made.asm["ptx"]) == (dtype != "float32")
    assert _stack(made.asm["cubin"], tmp_path) <= 16


def _stack(code: bytes, folder: Path) -> int:
    """Return how many bytes of what does not fit into registers a thread keeps in memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return 0
    (folder / "code.cubin").write_bytes(code)
    told = subprocess.run([tool, "--dump-resource-usage", folder / "code.cubin"], check=True, capture_output=True)
    return int(re.findall(rb"STACK:(\d+)", told.stdout)[-1])


@pytest.mark.parametrize("width", [80, 128])
def test_phase_2_compiles(width: int) -> None:
    constants = {"HEADS": 8, "WIDTH": width, "WIDTH_PAD": 128, "PAIRS": 16}
    made = _compiled(flat.merge, "bf16", 90, constants, {"num_warps": 4})
    assert made.asm["cubin"]
