"""Reading of safetensors files: the length of a header (8 bytes), the header as JSON, and the bytes of the tensors.

A file is read only if every byte of it belongs to exactly one tensor, as the format demands. Nothing in it is executed.
Source: the format's specification, https://github.com/huggingface/safetensors#format.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import BenchError, printable
from bench.inputs.reading import CHECKPOINT_BYTES, parse_json, read_bytes

SUFFIX = ".safetensors"
"""Ending of the names of such files."""

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Largest length of a header in bytes that the format allows."""
_MOST_ELEMENTS = 1 << 40
"""More than a file can hold; an empty tensor may state any shape with a zero in it."""
_MOST_DIMENSIONS = 64
"""Largest number of dimensions of a tensor; PyTorch and NumPy have no more."""
_MOST_VALUES = 1 << 20
"""Largest number of values in a header; a tensor has seven."""
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class FormatError(ValueError):
    """A file does not follow the format; the message says where."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        BenchError: The file is missing, or does not follow the format.
    """
    try:
        return parse_safetensors(read_bytes(path, CHECKPOINT_BYTES))
    except OSError as error:
        raise BenchError(f"cannot read the checkpoint '{path}': {error.strerror}") from error
    except FormatError as error:
        raise BenchError(
            f"the checkpoint '{path}' cannot be read: it is no valid safetensors file: {printable(str(error))}"
        ) from error


def parse_safetensors(content: bytes) -> dict[str, Tensor]:
    """Cut the content of a file into its tensors.

    Raises:
        FormatError: It does not follow the format.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if length > _LONGEST_HEADER or begin > len(content):
        raise FormatError(f"its header of {length:,} bytes does not fit into its {len(content):,} bytes")
    header = _header(content[_LENGTH_BYTES:begin])
    places = {name: _place(name, entry) for name, entry in header.items() if name != _METADATA}
    _check_cover({name: span for name, (_, _, span) in places.items()}, len(content) - begin)
    data = bytearray(content[begin:])
    return {name: _tensor(data, *place) for name, place in places.items()}


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text, _MOST_VALUES)
    except ValueError as error:
        raise FormatError(f"its header is not JSON that can be read: {error}") from error
    if not isinstance(header, dict):
        raise FormatError("its header is not a JSON object")
    return header


_Place = tuple[torch.dtype, tuple[int, ...], tuple[int, int]]
"""Data type of a tensor, its shape, and the first byte of it and the one after its last."""


def _place(name: str, entry: Any) -> _Place:
    fields = entry if isinstance(entry, dict) else {}
    dtype = _DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise FormatError(f"'{name}' has data type {fields.get('dtype')!r}; allowed: {', '.join(_DTYPES)}")
    shape, span = _whole_numbers(fields.get("shape")), _whole_numbers(fields.get("data_offsets"))
    if shape is None or span is None or len(span) != 2:
        raise FormatError(f"'{name}' lacks a shape or two offsets of whole numbers")
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize or math.prod(filter(None, shape)) > _MOST_ELEMENTS:
        raise FormatError(f"'{name}' of shape {shape} has {span[1] - span[0]:,} bytes")
    return dtype, shape, (span[0], span[1])


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    fit = (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(number) is int and number >= 0 for number in value)
    )
    return tuple(value) if fit else None


def _check_cover(spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """Check that tensors lie one behind the other, from the first byte to the last."""
    end = 0
    for name, (first, behind) in sorted(spans.items(), key=lambda item: item[1]):
        if first != end:
            raise FormatError(f"'{name}' begins at byte {first:,}, but what is before it ends at {end:,}")
        end = behind
    if end != size:
        raise FormatError(f"its tensors have {end:,} bytes, but {size:,} bytes follow the header")


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...], span: tuple[int, int]) -> Tensor:
    if span[0] == span[1]:
        return torch.empty(shape, dtype=dtype)
    # Bytes of their own, so that the first one is where the data type wants it.
    return torch.frombuffer(data[span[0] : span[1]], dtype=dtype).reshape(shape)
