"""Safetensors files, written here byte by byte: every dtype comes back, and nothing that breaks the format is read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BenchError
from bench.models.safetensors import read_safetensors

WEIGHT = struct.pack("<6f", 1, -2, 0.5, 3, 4, -8)
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def written(path: Path, header: Any, data: bytes = WEIGHT) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_tensors_come_back_with_shape_and_type(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [3, 27]},
        "mask": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
        "half": {"dtype": "F16", "shape": [], "data_offsets": [27, 29]},
        "brain": {"dtype": "BF16", "shape": [1], "data_offsets": [29, 31]},
        "count": {"dtype": "I64", "shape": [], "data_offsets": [31, 39]},
        "none": {"dtype": "F64", "shape": [0, 4], "data_offsets": [39, 39]},
    }
    data = bytes([1, 0, 1]) + WEIGHT + struct.pack("<e", 1.5) + struct.pack("<f", 2.5)[2:] + struct.pack("<q", -7)
    found = read_safetensors(written(tmp_path / "a.safetensors", header, data))
    assert list(found) == ["b.weight", "mask", "half", "brain", "count", "none"]
    assert found["b.weight"].tolist() == [[1, -2, 0.5], [3, 4, -8]] and found["b.weight"].dtype == torch.float32
    assert found["mask"].tolist() == [True, False, True]
    assert (found["half"].item(), found["half"].dtype) == (1.5, torch.float16)
    assert (found["brain"].tolist(), found["brain"].dtype) == ([2.5], torch.bfloat16)
    assert (found["count"].item(), found["none"].shape) == (-7, (0, 4))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"{", "its header is not JSON"),
        (b"\xff\xfe", "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        ([1], "not a JSON object"),
        (b'{"a": 1, "a": 2}', "its header is not JSON that can be read: a key is in one object twice"),
        (b"{" + b",".join(b'"%d":1' % number for number in range(50_000)) + b',"0":1}', "a key is in one object twice"),
        (b'{"a": ' + b"[" + b"[]," * 600_000 + b"[]]}", "it has more than 64 MB or 1,048,576 values"),
        ({"a": 3}, "'a' has data type None"),
        ({"a": {**ENTRY, "dtype": "F8_E4M3"}}, "'a' has data type 'F8_E4M3'; allowed: F64, F32"),
        ({"a": {**ENTRY, "shape": [2, -3]}}, "'a' lacks a shape or two offsets"),
        ({"a": {**ENTRY, "shape": [2, 3.0]}}, "'a' lacks a shape or two offsets"),
        ({"a": {**ENTRY, "data_offsets": [24]}}, "'a' lacks a shape or two offsets"),
        ({"a": {**ENTRY, "shape": [2, 4]}}, "'a' of shape (2, 4) has 24 bytes"),
        ({"a": {**ENTRY, "data_offsets": [4, 28]}}, "'a' begins at byte 4, but what is before it ends at 0"),
        ({"a": ENTRY, "b": ENTRY}, "'b' begins at byte 0, but what is before it ends at 24"),
        ({"a": {**ENTRY, "shape": [5], "data_offsets": [0, 20]}}, "its tensors have 20 bytes, but 24 bytes follow"),
        ({"a": {**ENTRY, "shape": [9], "data_offsets": [0, 36]}}, "its tensors have 36 bytes, but 24 bytes follow"),
        ({"a": {**ENTRY, "shape": [0, 1 << 63], "data_offsets": [0, 0]}}, "'a' of shape (0, "),
        ({"a": {**ENTRY, "shape": [0, 1 << 70], "data_offsets": [0, 0]}}, "the number 1180591620717411303424 is too"),
        ({"a": {**ENTRY, "shape": [1 << 63] * 100_000}}, "'a' lacks a shape or two offsets"),
        ({"a" * 100_000: {**ENTRY, "shape": [2, 4]}}, "aaa…"),
        ({}, "its tensors have 0 bytes, but 24 bytes follow"),
    ],
    ids=range(22),
)
def test_what_breaks_the_format_is_one_line(tmp_path: Path, header: Any, told: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_safetensors(written(tmp_path / "a.safetensors", header))
    assert told in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert f"the checkpoint '{tmp_path / 'a.safetensors'}' cannot be read" in str(caught.value)


def test_a_header_longer_than_the_file_and_a_missing_file(tmp_path: Path) -> None:
    for content in (b"", b"\x05", struct.pack("<Q", 1 << 62) + b"{}"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(BenchError, match=r"does not fit into its|not JSON"):
            read_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(BenchError, match=r"cannot read the checkpoint '.*b\.safetensors': No such file"):
        read_safetensors(tmp_path / "b.safetensors")
