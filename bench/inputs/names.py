"""Names and ids that come from outside, and the only function that makes paths of them.

A value of one of these types is a single part of a path: it has no separator, and is neither ".." nor hidden. `inside`
also refuses links that lead elsewhere. So nothing that a file, an archive or a command line says can lead out of a
folder.
"""

import os
import re
from pathlib import Path
from typing import ClassVar, Self

from bench.errors import BenchError
from bench.outputs.commands import shell

STUDY_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""Form of the name of a study."""
UNIT_ID = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"
"""Form of the id of a unit."""


class Name(str):
    """A text that may be a part of a path."""

    _WHAT: ClassVar[str]
    _ALLOWED: ClassVar[str]
    _FORM: ClassVar[re.Pattern[str]]

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check a text.

        Raises:
            BenchError: The text does not have the form.
        """
        if not cls.is_valid(text):
            shown = ascii(text)[:_SHOWN]
            raise BenchError(f"{shown} is not {cls._WHAT}; allowed: {cls._ALLOWED}")
        return super().__new__(cls, text)

    @classmethod
    def is_valid(cls, text: object) -> bool:
        """Return whether a value is a text of the form."""
        return isinstance(text, str) and cls._FORM.fullmatch(text) is not None


class StudyName(Name):
    """The name of a study, which is the name of its folder too."""

    _WHAT = "the name of a study"
    _ALLOWED = "up to 100 letters, digits, '_', '.' and '-', with a letter or digit first, e.g. resnet20-4bit"
    _FORM = re.compile(STUDY_NAME, re.ASCII)
    __slots__ = ()


class UnitId(Name):
    """The id of a pretraining, tuning, trial or run; not the name of the folder of a stale one."""

    _WHAT = "the id of a unit"
    _ALLOWED = "up to 200 letters, digits, '_', '.' and '-', as in the folders of the store"
    _FORM = re.compile(rf"(?!.*\.stale-){UNIT_ID}", re.ASCII)
    __slots__ = ()


class FileName(Name):
    """The name of a file or folder in a known folder."""

    _WHAT = "the name of a file"
    _ALLOWED = "a name without '/', and neither '.' nor '..'"
    _FORM = re.compile(r"(?!\.{1,2}\Z)[^/\0]{1,255}")
    __slots__ = ()


_SHOWN = 100
"""Characters of a wrong name that a message shows."""


def inside(folder: Path, *names: Name) -> Path:
    """Join names to a folder; the result lies in the folder, links followed.

    Args:
        folder: Folder of this harness; it may itself be a link, as when a user keeps it on another disk.
        names: Parts of the path below the folder.

    Raises:
        BenchError: A part is a link that leads out of the folder that it lies in.
    """
    for name in names:
        path = folder / name
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise BenchError(f"'{path}' is a link that leads out of '{folder}'; remove it: `{shell('rm', path)}`")
        folder = path
    return folder
