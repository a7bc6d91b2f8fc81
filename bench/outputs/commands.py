"""Commands for a user to type. Every command that the harness prints is made here.

A printed command does in a shell what it says, whatever the names of stores, studies and files are: its words are
quoted, control characters are written as escapes, and a store that is not the usual one is named.
"""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

DEFAULT_STORE = "bench-store"
"""Store of a command without `--store`."""
STORE_VARIABLE = "BENCH_STORE"
"""Environment variable that names another one."""

_PLAIN_BLANKS = re.compile(r"(?<!\s) (?!\s)")
_SHORT_ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_LONG_FORMS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_WITH_ESCAPES = re.compile(r"(?<!\S)\$'((?:[^'\\]|\\.)*)'(?!\S)")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")


def command(*words: object, store: Path | None = None) -> str:
    """Return a command of the harness.

    Args:
        words: Words after `bench`, without quotation marks. Paths among them are never taken for options.
        store: Store that the command is about. `--store` is added unless the command would take this store by itself.
    """
    own = os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    about = () if store is None or store.absolute() == Path(own).absolute() else ("--store", store)
    return shell("bench", *words, *about)


def shell(*words: object) -> str:
    """Return a command with the given words, which are paths or texts."""
    return join(_argument(word) for word in words)


def join(words: Iterable[str]) -> str:
    """Write words as one line from which a shell makes the same words again."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    r"""Quote a word for a shell.

    Characters that cannot be seen are written as escapes in `$'…'`, which bash, zsh, ksh and POSIX.1-2024 read. So are
    several blanks in a row, because forms such as Markdown join them, and backquotes, because messages put commands
    between them.
    """
    visible = _PLAIN_BLANKS.sub("_", word)
    if visible.isprintable() and " " not in visible and "`" not in visible:
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character.isprintable() and character not in " `":
        return character
    try:
        content = character.encode("utf-8", "surrogateescape")  # halves stand for bytes of names that are not UTF-8
    except UnicodeEncodeError:  # no name has such a character
        content = b"?"
    return "".join(f"\\{byte:03o}" for byte in content)


def split(line: str) -> list[str]:
    """Return the words of a command that was made here.

    Raises:
        ValueError: A quotation mark is not closed.
    """
    return shlex.split(_WITH_ESCAPES.sub(lambda found: shlex.quote(_unescaped(found[1])), line))


def study_command(line: object, store: Path) -> str:
    """Return the command of a study as its document states it, for a user to type; empty if it is something else.

    A document may come from somebody else. Whatever it states, the result is one `bench run` command and nothing more.

    Args:
        line: Command as the document states it.
        store: Store of the study.
    """
    try:
        words = split(str(line or ""))
    except ValueError:
        return ""
    if words[:2] != ["bench", "run"]:
        return ""
    named = any(word == "--store" or word.startswith("--store=") for word in words)
    return command(*words[1:], store=None if named else store)


def seeds_argument(seeds: list[int]) -> str:
    """Write seeds as `--seeds` reads them: a count for 0, 1, …, otherwise a list."""
    if len(seeds) > 1 and seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def _unescaped(text: str) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: _byte(found[1]), os.fsencode(text)))


def _byte(escape: bytes) -> bytes:
    return bytes([int(escape, 8)]) if escape.isdigit() else _LONG_FORMS.get(escape, escape)


def _argument(word: object) -> str:
    text = str(word)
    return f"./{text}" if isinstance(word, Path) and text.startswith("-") else text
