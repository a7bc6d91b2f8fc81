"""Layout of an archive: which names its files may have, and to which unit each belongs."""

import re
from collections.abc import Iterator
from pathlib import Path

from bench.inputs.names import UNIT_ID
from bench.store.contents import UnitKey, folders
from bench.store.files import UnitKind

FORMAT = 1
"""Version of the archive's format; raised when an older harness could not read it."""
PROJECT = "sbs-bench"
MANIFEST = "MANIFEST.json"

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.,+=@() -]{0,199}"
_ID = rf"(?!.*\.stale-){UNIT_ID}"
LAYOUT = re.compile(
    rf"studies/{_PART}(/{_PART}){{1,5}}"
    rf"|(?P<kind>pretrained|tuning|runs)/(?P<id>{_ID})/(checkpoints/)?{_PART}"
    rf"|tuning/(?P<tuning>{_ID})/trials/[0-9]{{1,9}}/(checkpoints/)?{_PART}",
    re.ASCII,
)
"""Names that a study's files may have in an archive."""


def unit_of(name: str) -> UnitKey | None:
    """Return the unit to which a file of an archive belongs; `None` for a study's own files."""
    match = LAYOUT.fullmatch(name)
    if match is None or name.startswith("studies/"):
        return None
    kinds: dict[str | None, UnitKind] = {"pretrained": "pretrained", "runs": "runs"}
    return kinds.get(match["kind"], "tuning"), match["id"] or match["tuning"]


def regular_files(folder: Path) -> list[Path]:
    """Return the files in a folder, without hidden ones and links; none when the folder does not exist."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [path for path in entries if path.name[0] != "." and path.is_file() and not path.is_symlink()]


def files_below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, each with its name in the archive.

    Args:
        folder: Folder to look into.
        name: Name of the folder in the archive.
    """
    yield from ((f"{name}/{path.name}", path) for path in regular_files(folder))
    for inner in folders(folder):
        yield from files_below(inner, f"{name}/{inner.name}")
