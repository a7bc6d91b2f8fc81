"""Folders that a user names for output: they are made and tried before any work is done for them."""

import tempfile
from pathlib import Path

from bench.errors import BenchError


def make_folder(folder: Path) -> None:
    """Make a folder for output, and make sure that files can be written to it.

    Raises:
        BenchError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchError(
            f"cannot write to '{folder}': {error.strerror}; choose another folder with --out DIR"
        ) from error
