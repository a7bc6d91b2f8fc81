"""Reading of files of unknown origin: a limited number of bytes, of regular files only, and JSON that code can handle.

Whatever a path leads to, the functions return what was asked for or raise an `OSError` or a `ValueError` at once. They
do not wait for a pipe, do not read devices without end, and do not fill the memory.
"""

import errno
import hashlib
import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

JSON_BYTES = 64 << 20
"""Largest size of a JSON file; the document of a study with 100,000 runs is half as large."""
CHECKPOINT_BYTES = 8 << 30
"""Largest size of a checkpoint; those of the largest networks here have a twentieth of it."""
TEXT_BYTES = 4 << 20
"""Largest size of a specification or another file that a person writes."""
DEEPEST = 100
"""Largest number of JSON objects and lists inside each other."""
MOST_VALUES = 5_000_000
"""Largest number of values in a JSON document; an empty list of two bytes takes thirty times as many in the memory."""
LARGEST_NUMBER = 1 << 64
"""Whole numbers in JSON are smaller, so that each of them can be a float too."""

_PART_BYTES = 1 << 16
"""Bytes of a file that are hashed at once."""
_SHORT = 4
"""Largest number of characters of whole numbers that are kept."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: It cannot be opened, or is a folder, pipe, device or socket.
    """
    return os.fdopen(_opened(path)[0], "rb")


def _opened(path: Path) -> tuple[int, int]:
    """Open a regular file; return its descriptor and its size in bytes.

    Raises:
        OSError: It cannot be opened, or is a folder, pipe, device or socket.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # no file can have such a name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor, status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file.

    Args:
        path: Path of the file.
        limit: Largest number of bytes that it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    descriptor, left = _opened(path)
    try:
        if left > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit >> 20} MB", str(path))
        parts = []
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """Read a text file.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than the limit.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, limit).decode()


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Raises:
        OSError: The file cannot be read, or is not a regular one.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(_PART_BYTES):  # the library's own loop clears 256 KB of memory for every file
            digest.update(part)
    return digest.hexdigest()


def parse_json(content: bytes, most: int = MOST_VALUES) -> Any:
    """Parse a JSON document; halves of characters that text cannot have stay in it, see `with_whole_characters`.

    Args:
        content: Content of the document.
        most: Largest number of values that it may have; a comma or a bracket in a text counts as one.

    Raises:
        ValueError: It is not UTF-8 or not JSON, is too large or nested too deeply, has a number that is too large, or
            has a key twice.
    """
    if len(content) > JSON_BYTES or sum(map(content.count, (b",", b"[", b"{"))) > most:
        raise ValueError(f"it has more than {JSON_BYTES >> 20} MB or {most:,} values")
    try:
        document = _DECODER.decode(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if content.count(b"{") + content.count(b"[") > DEEPEST and is_deep(document):
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    return document


def with_whole_characters(document: Any, content: bytes) -> Any:
    """Return a document in which halves of characters are replaced, so that every text can be printed and written.

    Args:
        document: Document.
        content: Bytes that it was parsed from; most of them have no such halves, and the document is returned as it is.
    """
    return _without_surrogates(document) if _ESCAPED_SURROGATE.search(content) else document


def _without_surrogates(item: Any) -> Any:
    if isinstance(item, str):
        return _LONE_SURROGATE.sub("�", item)
    if isinstance(item, list):
        return [_without_surrogates(inner) for inner in item]
    if isinstance(item, dict):
        return {_without_surrogates(key): _without_surrogates(inner) for key, inner in item.items()}
    return item


class _WholeNumbers(dict[str, int]):
    """Whole numbers by their text. Short ones are kept, as policies and curves hold many of them."""

    def __missing__(self, text: str) -> int:
        number = int(text) if len(text) <= len(str(LARGEST_NUMBER)) + 1 else LARGEST_NUMBER
        if abs(number) >= LARGEST_NUMBER:
            raise ValueError(f"the number {text[:30]} is too large")
        if len(text) <= _SHORT:
            self[text] = number
        return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is in one object twice")
    return made


_DECODER = json.JSONDecoder(parse_int=_WholeNumbers().__getitem__, object_pairs_hook=_object)


def is_deep(document: Any) -> bool:
    """Return whether a document has more than `DEEPEST` objects and lists inside each other."""
    level = [document]
    for _ in range(DEEPEST):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True
