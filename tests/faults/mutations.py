"""Damaged and hostile forms of valid files, drawn from a seed, for tests of code that reads files."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from bench.store.files import CHECKSUM, _checksum

HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**53, 2**63, 2**64, 10**400, -(10**30)),
    *(float("nan"), float("inf"), -1e308),
    *("", "x", "../../x", "/etc/passwd", "\ud800", "a\nb", "\x1b[31m", "\0", "=1+1", "y" * 10_000, "1e5", "nan"),
    *([], {}, [1], [[]], {"a": 1}, [None], [{}], ["x"], {"": {}}, {"metrics": []}),
)
_TEXTS = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 90 + b"]" * 90,
    b"[" * 500 + b"]" * 500,
    b"9" * 1_000_000,
    b"-1e999",
    b"NaN",
    b'{"a": 1, "a": 2}',
    b'"\\ud800"',
    b"\xff\xfe{",
    b"",
    b"null",
    b"{}",
    b"\0" * 1000,
)


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """Damage a file as a bad disk does: cut it off, change, insert, repeat or drop bytes."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place, length = draw.randrange(len(changed) + 1), draw.choice((1, 1, 4, 64, 512))
        kind = draw.randrange(5)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place : place + length] = draw.randbytes(length)
        elif kind == 2:
            changed[place:place] = draw.randbytes(length)
        elif kind == 3:
            changed[place:place] = changed[max(0, place - length) : place]
        else:
            del changed[place : place + length]
    return bytes(changed)


def mutated_document(document: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON document with one to three hostile values, missing keys or additional keys."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            return _hostile(draw)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("../x", "", "\ud800", "new", "x" * 300))] = _hostile(draw)
        elif kind == 2:
            holder[key] = _nested(draw.choice((20, 90, 150)))
        else:
            holder[key] = _hostile(draw)
    return changed


def _hostile(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(HOSTILE_VALUES))


def _places(item: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every holder of a value, with the key of the value in it."""
    entries = list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else []
    for key, inner in entries:
        yield item, key
        yield from _places(inner)


def _nested(depth: int) -> Any:
    item: Any = 1
    for _ in range(depth):
        item = [item]
    return item


def mutated_json(document: Any, draw: random.Random) -> bytes:
    """Return the content of a JSON file that is damaged, or hostile with a checksum that fits."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(_TEXTS)
    if kind == 1:
        return mutated_bytes(json.dumps(document).encode(), draw)
    changed = mutated_document(document, draw)
    if isinstance(changed, dict) and CHECKSUM in document:
        changed.pop(CHECKSUM, None)
        changed[CHECKSUM] = _checksum(changed)
    return json.dumps(changed).encode()
