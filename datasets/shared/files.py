"""Find the files of a data set that torchvision publishes, verify them, and download missing ones."""

import contextlib
import hashlib
import io
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from bench.api import BenchError

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection."""

Check = Callable[[Path], str | None]
"""Checks a file; returns a description of the fault, or `None`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFiles:
    """The files of a published data set.

    Attributes:
        name: Name of the data set on the command line.
        folder: Folder of the files, relative to the data folder.
        files: Check of each file in that folder, by its name.
        archives: MD5 of each archive that holds the files, by its path relative to the data folder.
        download: Function that downloads and unpacks all files below a given folder; it uses archives that it finds
            there.
    """

    name: str
    folder: str
    files: Mapping[str, Check]
    archives: Mapping[str, str]
    download: Callable[[Path], object]


def data_folder(data_dir: Path | None) -> Path:
    """Return the folder that holds all data sets, absolute: by default `sbs-bench` in the user's cache."""
    if data_dir is not None:
        return data_dir.expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification tells programs to ignore a relative path.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "sbs-bench"


def paths(published: PublishedFiles, data_dir: Path | None) -> list[Path]:
    """List the paths of all files of a data set; nothing is read or downloaded."""
    return [data_folder(data_dir) / published.folder / name for name in published.files]


def locate(published: PublishedFiles, data_dir: Path | None) -> Path:
    """Check every file of a data set, download missing ones, and return the data folder.

    Files that exist are only read, so the folder may be read-only.

    Raises:
        BenchError: A file is corrupt or unreadable, or is missing and cannot be downloaded.
    """
    root = data_folder(data_dir)
    try:
        missing = _missing(published, root)
    except OSError as error:
        raise BenchError(
            f"cannot read data set '{published.name}' in {root / published.folder}: {error.strerror or error}; "
            "make it readable or give another folder with --data-dir DIR"
        ) from error
    if missing:
        _download(published, root, missing)
    return root


def md5_check(expected: str) -> Check:
    """Make a check that compares the MD5 of a file with the published one."""

    def check(path: Path) -> str | None:
        found = _md5(path)
        return None if found == expected else f"expected md5 {expected}, found {found}"

    return check


def layout_check(header: bytes, size: int) -> Check:
    """Make a check of the first bytes of a file and its size in bytes, for files without a published checksum."""

    def check(path: Path) -> str | None:
        found_size = path.stat().st_size
        if found_size != size:
            return f"expected {size} bytes, found {found_size}"
        with path.open("rb") as file:
            found = file.read(len(header))
        return None if found == header else f"expected the header {header.hex()}, found {found.hex()}"

    return check


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _missing(published: PublishedFiles, root: Path) -> Sequence[str]:
    """List the names of missing files, after a check of the others."""
    missing = []
    for name, check in published.files.items():
        path = root / published.folder / name
        if not path.is_file():
            missing.append(name)
        elif fault := check(path):
            raise BenchError(
                f"{path} of data set '{published.name}' is corrupt: {fault}; delete it to download it again, "
                "or give a folder with a good copy with --data-dir DIR"
            )
    return missing


def _download(published: PublishedFiles, root: Path, missing: Sequence[str]) -> None:
    """Download into a temporary folder, then move each missing file to its path, so that no partial file is seen."""
    logger.info("downloading data set %s into %s", published.name, root)
    target = root / published.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as name:
            temporary = Path(name)
            _reuse_archives(published, root, temporary)
            with _quiet_and_bounded():
                published.download(temporary)
            target.mkdir(parents=True, exist_ok=True)
            for file in missing:
                (temporary / published.folder / file).replace(target / file)
    except (OSError, RuntimeError, HTTPException) as error:
        state = "is incomplete" if len(missing) < len(published.files) else "was not found"
        raise BenchError(
            f"data set '{published.name}' {state}: looked for {', '.join(missing)} in {target}; "
            f"{_reason(error, root)}; put the unpacked folder '{published.folder}' into {root}, "
            "or give the folder that holds it with --data-dir DIR"
        ) from error


def _reuse_archives(published: PublishedFiles, root: Path, temporary: Path) -> None:
    """Link archives that exist into the temporary folder, so that they are unpacked without a download."""
    for name, md5 in published.archives.items():
        archive = root / name
        # Torchvision would write through a link to a corrupt archive.
        if archive.is_file() and _md5(archive) == md5:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).symlink_to(archive.resolve())


@contextlib.contextmanager
def _quiet_and_bounded() -> Iterator[None]:
    """Hide the progress bar of downloads, and limit the wait for a connection."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(previous)


def _reason(error: Exception, root: Path) -> str:
    """Describe in one line why the download failed."""
    # Errors of local files have a file name; errors of a connection have none, or an address.
    if isinstance(error, OSError) and not isinstance(error, URLError) and error.filename is not None:
        return f"cannot write to {root} to download it ({error.strerror})"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the download failed ({lines[-1]})"
