"""Writing of an archive: reproducible byte for byte, and complete or absent."""

import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import bench
from bench.errors import BenchError
from bench.inputs.reading import JSON_BYTES, open_regular
from bench.outputs.commands import shell
from bench.store.archive.layout import FORMAT, LAYOUT, MANIFEST, PROJECT, files_below, regular_files, unit_of
from bench.store.archive.redaction import may_have_secrets, redacted
from bench.store.contents import folders, units_of
from bench.store.files import Store, read_checked, read_record
from bench.store.outcomes import RESULTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Archived:
    """Content of an archive that was written.

    Attributes:
        units, files: Numbers of units and files.
        size: Bytes of the archive.
        left_out: Number of files in the study's folder that the harness did not make and that were left out.
    """

    units: int
    files: int
    size: int
    left_out: int


def archive(store: Store, name: str, target: Path) -> Archived:
    """Write a study and all its units into one file, which appears complete or not at all.

    Args:
        store: Store that holds the study.
        name: Name of the study.
        target: Path of the archive; must not exist.

    Raises:
        BenchError: There is no such study, or the file exists already or cannot be written.
    """
    document = store.load_study(name)
    if os.path.lexists(target):
        raise BenchError(f"'{target}' exists already; give another name, or remove it first: `{shell('rm', target)}`")
    files, left_out = _files_of_study(store, document)
    command = str((read_checked(store.study(name) / "study.json") or {}).get("command") or "")
    with _new_file(target) as file:
        _write(file, name, files, command)
    return Archived(
        units=len({unit for path in files if (unit := unit_of(path)) is not None}),
        files=len(files),
        size=target.stat().st_size,
        left_out=left_out,
    )


def _files_of_study(store: Store, document: Mapping[str, Any]) -> tuple[dict[str, Path], int]:
    """Collect every file of a study by its name in the archive, in the archive's order, and count what is left out."""
    study = store.study(str(document["name"]))
    paths = dict(files_below(study, f"studies/{study.name}"))
    for kind, identity in units_of(document):
        paths |= _files_of_unit(store.unit(kind, identity), f"{kind}/{identity}")
    # A record is written after the files that it lists. Read before them, it never lists a file that is missing.
    order = sorted(paths, key=lambda name: (PurePosixPath(name).parent.parts, not name.endswith("/record.json"), name))
    kept = {name: paths[name] for name in order if LAYOUT.fullmatch(name)}
    return kept, len(paths) - len(kept)


def _files_of_unit(folder: Path, name: str) -> dict[str, Path]:
    paths = {f"{name}/{path.name}": path for path in regular_files(folder)}
    if (read_record(folder) or {}).get("status") not in RESULTS:
        paths |= {f"{name}/checkpoints/{path.name}": path for path in regular_files(folder / "checkpoints")}
    for trial in folders(folder / "trials"):
        if trial.name.isdecimal():
            paths |= _files_of_unit(trial, f"{name}/trials/{trial.name}")
    return paths


@contextmanager
def _new_file(target: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name when the block ends, and only if no file has that name by then."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename_to_new(temporary, target)
    except OSError as error:
        raise BenchError(f"cannot write '{target}': {error.strerror or error}; nothing was written") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _rename_to_new(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        source.rename(target)


def _write(file: IO[bytes], study: str, files: Mapping[str, Path], command: str) -> None:
    listed = {}
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=4) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in files.items():
            listed[name] = _add(tar, name, path, command)
        manifest = {"format": FORMAT, "project": PROJECT, "version": bench.__version__, "study": study}
        content = (json.dumps({**manifest, "files": listed}, indent=1, sort_keys=True) + "\n").encode()
        tar.addfile(_entry(MANIFEST, len(content)), io.BytesIO(content))


def _add(tar: tarfile.TarFile, name: str, path: Path, command: str) -> dict[str, Any]:
    """Add a file with its present content, without secrets; return its size and checksum."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        source: IO[bytes] = file
        if may_have_secrets(name) and size <= JSON_BYTES:
            content = redacted(name, file.read(size), command)
            source, size = io.BytesIO(content), len(content)
        info = _entry(name, size)
        hashing = _HashingReader(source)
        tar.addfile(info, hashing)  # type: ignore[arg-type]
    return {"bytes": info.size, "sha256": hashing.digest.hexdigest()}


def _entry(name: str, size: int) -> tarfile.TarInfo:
    """Make an entry without owner and time, so that equal content gives equal archives."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


class _HashingReader:
    """Reads a file and hashes what is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        content = self._file.read(size)
        self.digest.update(content)
        return content
