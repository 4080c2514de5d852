"""Streaming safetensors files: what is written is what the library reads, and broken files are told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prefold.convert import BrokenCheckpoint
from prefold.convert.checkpoint.safetensors_file import (
    Outgoing,
    as_bytes,
    cast,
    dtype_name,
    passed_through,
    read_header,
    write_file,
)

_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])


def outgoing(tensor: torch.Tensor) -> Outgoing:
    return Outgoing(dtype_name(tensor.dtype), list(tensor.shape), tensor.nbytes, lambda: [as_bytes(tensor)])


@given(shapes=st.lists(st.tuples(_DTYPES, st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_the_library_reads(tmp_path: Path, shapes: list[tuple[torch.dtype, list[int]]]):
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(shapes)}
    (tmp_path / "a.safetensors").unlink(missing_ok=True)  # of the example before
    write_file(tmp_path / "a.safetensors", {name: outgoing(tensor) for name, tensor in tensors.items()})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_tensors_pass_through_byte_for_byte(tmp_path: Path):
    save_file({"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16()}, tmp_path / "in.safetensors")
    entries = read_header(tmp_path / "in.safetensors")
    write_file(tmp_path / "out.safetensors", {name: passed_through(entry) for name, entry in entries.items()})
    copied = read_header(tmp_path / "out.safetensors")
    assert {name: b"".join(entry.chunks()) for name, entry in copied.items()} == {
        name: b"".join(entry.chunks()) for name, entry in entries.items()
    }


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 20) + 3])
def test_a_tensor_of_any_size_is_read_whole(tmp_path: Path, size: int):
    """Its parts come in one buffer that is used again and again."""
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    assert torch.equal(read_header(tmp_path / "a.safetensors")["a"].tensor(), tensor)


@pytest.mark.parametrize("row", [0, 2, 6])
def test_a_row_is_read_as_zeros_whatever_the_file_holds(tmp_path: Path, row: int):
    """Rows are longer than what is read at once: one lies in several pieces, and a piece holds parts of several."""
    tensor = torch.randint(1, 256, (7, 600_000), dtype=torch.uint8)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    tensor[row] = 0
    assert torch.equal(read_header(tmp_path / "a.safetensors")["a"].with_zero_row(row).tensor(), tensor)


def test_rows_begin_on_a_page(tmp_path: Path):
    write_file(tmp_path / "a.safetensors", {"table": outgoing(torch.zeros(2, 3))})
    assert read_header(tmp_path / "a.safetensors")["table"].start % 4096 == 0


def test_casting_changes_floats_alone(tmp_path: Path):
    save_file({"f": torch.tensor([1.0, 1e-9]), "i": torch.tensor([1])}, tmp_path / "in.safetensors")
    entries = read_header(tmp_path / "in.safetensors")
    write_file(tmp_path / "out.safetensors", {n: cast(e, torch.float16) for n, e in entries.items()})
    read = load_file(tmp_path / "out.safetensors")
    assert torch.equal(read["f"], torch.tensor([1.0, 1e-9]).half())
    assert read["i"].dtype == torch.int64


@pytest.mark.parametrize("cut", [4, 20, -1])
def test_a_file_cut_short_is_told(tmp_path: Path, cut: int):
    save_file({"a": torch.randn(64)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:cut])
    with pytest.raises(BrokenCheckpoint, match=r"a\.safetensors.*cut short"):
        read_header(tmp_path / "a.safetensors")


def write_raw(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("header", [b"not json!", b"[1, 2]   ", b'{"a": {}}', b'{"a": 17}', b'{"a":' * 50_000])
def test_a_header_of_another_form_is_told(tmp_path: Path, header: bytes):
    write_raw(tmp_path / "a.safetensors", header)
    with pytest.raises(BrokenCheckpoint, match=r"^a\.safetensors: cut short or broken: invalid JSON") as refusal:
        read_header(tmp_path / "a.safetensors")
    assert len(str(refusal.value)) < 250
    assert "\n" not in str(refusal.value)


# Every one was accepted by a parser that asked for nothing but the last offset.
_BROKEN: dict[str, dict[str, Any]] = {
    "overlap": {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])},
    "hole": {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [8, 12])},
    "reversed": {"a": ("F32", [3], [12, 0])},
    "negative": {"a": ("F32", [4], [-4, 12])},
    "size": {"a": ("F32", [2], [0, 12])},
    "type": {"a": ("X9", [3], [0, 12])},
    "fraction": {"a": ("F32", [3], [0.0, 12.0])},
    "shape": {"a": ("F32", [2**40, 2**40], [0, 12])},
    "beyond": {"a": ("F32", [4], [0, 16])},
    "overlong": {"a": ("F32", [2], [0, 8])},
    "no torch type": {"a": ("F4", [24], [0, 12])},
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_a_header_that_its_file_belies_is_told(tmp_path: Path, kind: str):
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in _BROKEN[kind].items()
    }
    write_raw(tmp_path / "a.safetensors", json.dumps(header).encode(), bytes(12))
    with pytest.raises(BrokenCheckpoint, match=r"^a\.safetensors: "):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "said", [["F32", [3], [0, 12]], {"dtype": {"F32": None}, "shape": [3], "data_offsets": [0, 12]}]
)
def test_a_header_that_only_the_library_understands_is_told(tmp_path: Path, said: Any):
    write_raw(tmp_path / "a.safetensors", json.dumps({"a": said}).encode(), bytes(12))
    with pytest.raises(BrokenCheckpoint, match=r"^a\.safetensors: a has the type .*, which torch lacks"):
        read_header(tmp_path / "a.safetensors")


def test_a_tensor_that_brings_fewer_bytes_than_announced_is_told(tmp_path: Path):
    with pytest.raises(BrokenCheckpoint, match="4 bytes came where 8 were announced"):
        write_file(tmp_path / "a.safetensors", {"t": Outgoing("F32", [2], 8, lambda: [b"1234"])})
