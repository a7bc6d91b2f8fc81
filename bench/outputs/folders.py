"""Folders that a user names for output: they are tried before any work is done for them."""

import tempfile
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError


def require_writable(folder: Path) -> None:
    """Make sure that a folder for output can be made and written; nothing is left there.

    Raises:
        BenchError: It cannot.
    """
    made: list[Path] = []
    try:
        for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
            missing.mkdir()
            made.append(missing)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchError(
            f"cannot write to '{folder}': {error.strerror}; choose another folder with --out DIR"
        ) from error
    finally:
        for each in reversed(made):
            with suppress(OSError):  # another command has put something there
                each.rmdir()
