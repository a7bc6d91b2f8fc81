"""The size of an ONNX file before it is parsed: an object in memory can take a hundred times its bytes in the file.

The bytes of constants take as many in memory, so that they may be many. Everything else of a file that the harness
writes is small. Source of the layout: https://protobuf.dev/programming-guides/encoding.
"""

from bench.export.graph.tensors import ProgramError

_MOST_BESIDES = 8 << 20
"""Largest number of bytes besides constants; a layer has 1,500."""
_MOST_FIELDS = 1 << 20
"""Largest number of nodes and constants, and of the fields of constants."""
_TO_CONSTANTS = (7, 5, 9)
"""Numbers of the fields: graph of a model, constant of a graph, bytes of a constant."""
_NUMBER, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Kinds of fields: a number of variable length, eight bytes, any number of bytes, four bytes."""
_LONGEST_NUMBER = 10


def check_size(content: bytes) -> None:
    """Make sure that a model does not fill the memory when it is parsed.

    Raises:
        ProgramError: It is no ONNX model, or has more than the harness writes besides the bytes of constants.
    """
    try:
        besides = len(content) - _bytes_of_constants(content)
    except IndexError as error:
        raise ProgramError("it is no ONNX model") from error
    if besides > _MOST_BESIDES:
        raise ProgramError(f"it has {besides:,} bytes besides its constants, more than any that the harness writes")


def _bytes_of_constants(content: bytes) -> int:
    """Return the number of bytes in the constants of a model.

    Raises:
        IndexError: The file ends in a field, or a field in another one.
        ProgramError: It has too many fields, or fields of an unknown kind.
    """
    found, fields = 0, 0
    waiting = [(0, len(content), 0)]
    while waiting:
        place, end, depth = waiting.pop()
        while place < end:
            fields += 1
            if fields > _MOST_FIELDS:
                raise ProgramError(f"it has more than {_MOST_FIELDS:,} nodes and constants")
            key, place = _number(content, place)
            first, place = _field(content, place, key & 7)
            if key == _TO_CONSTANTS[depth] << 3 | _BYTES:
                if depth == len(_TO_CONSTANTS) - 1:
                    found += place - first
                else:
                    waiting.append((first, place, depth + 1))
        if place != end:
            raise IndexError(place)
    return found


def _field(content: bytes, place: int, kind: int) -> tuple[int, int]:
    """Return the first byte of a field's value, and the one behind its last."""
    if kind == _NUMBER:
        return place, _number(content, place)[1]
    if kind == _BYTES:
        length, first = _number(content, place)
        return first, first + length
    if kind not in (_EIGHT, _FOUR):
        raise ProgramError("it is no ONNX model")
    return place, place + (8 if kind == _EIGHT else 4)


def _number(content: bytes, place: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, the lowest first, and the place behind it."""
    number = 0
    for index in range(_LONGEST_NUMBER):
        byte = content[place + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, place + index + 1
    raise IndexError(place)
