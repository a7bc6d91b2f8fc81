"""Finds the files of a data set that torchvision publishes, verifies them, and fetches what is missing."""

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

Check = Callable[[Path], str | None]
"""Says what is wrong with a file, `None` when nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a published data set consists of.

    Attributes:
        name: The data set's name on the command line.
        folder: Where its files lie, relative to the data folder.
        files: Each file of that folder with its check.
        archives: Each archive that holds the files, relative to the data folder, with its md5.
        download: Fetches and unpacks everything below the folder it is given, using archives already there.
    """

    name: str
    folder: str
    files: Mapping[str, Check]
    archives: Mapping[str, str]
    download: Callable[[Path], object]


def data_folder(data_dir: Path | None) -> Path:
    """The folder that holds all data sets, absolute; `sbs-bench` in the user's cache when none is given."""
    if data_dir is not None:
        return data_dir.expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification tells programs to ignore a relative path.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "sbs-bench"


def paths(source: Source, data_dir: Path | None) -> list[Path]:
    """Where the files of a source belong; nothing is read or fetched."""
    return [data_folder(data_dir) / source.folder / name for name in source.files]


def locate(source: Source, data_dir: Path | None) -> Path:
    """The data folder, once every file of the source is there and has passed its check.

    Files that are there are only read, so the folder may be read-only; missing ones are downloaded.

    Raises:
        BenchError: A file is corrupt or unreadable, or is missing and cannot be fetched.
    """
    root = data_folder(data_dir)
    try:
        missing = _missing(source, root)
    except OSError as error:
        raise BenchError(
            f"cannot read data set '{source.name}' in {root / source.folder}: {error.strerror or error}; "
            "make it readable or give another folder with --data-dir DIR"
        ) from error
    if missing:
        _fetch(source, root, missing)
    return root


def md5_check(expected: str) -> Check:
    """A check of a file's md5 against the published one."""

    def check(path: Path) -> str | None:
        found = _md5(path)
        return None if found == expected else f"expected md5 {expected}, found {found}"

    return check


def layout_check(header: bytes, size: int) -> Check:
    """A check of a file's first bytes and its size in bytes, for files without a published checksum."""

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


def _missing(source: Source, root: Path) -> Sequence[str]:
    """Names of the files that are not there, after a check of those that are."""
    missing = []
    for name, check in source.files.items():
        path = root / source.folder / name
        if not path.is_file():
            missing.append(name)
        elif fault := check(path):
            raise BenchError(
                f"{path} of data set '{source.name}' is corrupt: {fault}; delete it to download it again, "
                "or give a folder with a good copy with --data-dir DIR"
            )
    return missing


def _fetch(source: Source, root: Path, missing: Sequence[str]) -> None:
    """Download into a scratch folder, then move each missing file into place; no half file is ever seen."""
    logger.info("downloading data set %s into %s", source.name, root)
    target = root / source.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            _reuse_archives(source, root, scratch)
            with _quiet_and_bounded():
                source.download(scratch)
            target.mkdir(parents=True, exist_ok=True)
            for file in missing:
                (scratch / source.folder / file).replace(target / file)
    except (OSError, RuntimeError, HTTPException) as error:
        state = "is incomplete" if len(missing) < len(source.files) else "was not found"
        raise BenchError(
            f"data set '{source.name}' {state}: looked for {', '.join(missing)} in {target}; "
            f"{_reason(error, root)}; put the unpacked folder '{source.folder}' into {root}, "
            "or give the folder that holds it with --data-dir DIR"
        ) from error


def _reuse_archives(source: Source, root: Path, scratch: Path) -> None:
    """Show the downloader the archives that are already there, so that it unpacks them without a network."""
    for name, md5 in source.archives.items():
        archive = root / name
        # A corrupt one must stay out: the downloader would write through the link.
        if archive.is_file() and _md5(archive) == md5:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).symlink_to(archive.resolve())


@contextlib.contextmanager
def _quiet_and_bounded() -> Iterator[None]:
    """Hide the downloader's progress bar, and keep a dead connection from hanging forever."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(previous)


def _reason(error: Exception, root: Path) -> str:
    """Why fetching failed, in one line."""
    # Only errors of local files carry a name; those of a connection have none, or an address.
    if isinstance(error, OSError) and not isinstance(error, URLError) and error.filename is not None:
        return f"cannot write to {root} to download it ({error.strerror})"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the download failed ({lines[-1]})"
