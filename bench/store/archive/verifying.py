"""Verification of an archive of unknown origin: it must be intact, and hold one study and nothing else."""

import gzip
import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.inputs.names import StudyName
from bench.inputs.reading import JSON_BYTES, open_regular, parse_json, with_whole_characters
from bench.store.archive.layout import FORMAT, LAYOUT, MANIFEST, PROJECT, unit_of
from bench.store.contents import size_in_words, units_of
from bench.store.schemas import Study, fitting

MAX_FILES = 200_000
"""More files than any study has."""

_BLOCK = 1 << 20
_LARGEST_READ = 4 << 20
"""Largest number of bytes in one read; the headers of a tar file can ask for any number."""


class RefusedError(Exception):
    """An archive is not accepted; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """An intact archive of one study.

    Attributes:
        study: Name of the study.
        document: Content of the study's `study.json`.
        files: Size and checksum of each file, by its name.
    """

    study: str
    document: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(kw_only=True)
class _Contents:
    """What has been read of an archive so far.

    Attributes:
        files: Size and checksum of each file.
        documents: Content of the manifest and of the study's document.
        size: Bytes of all files.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


def verify(source: Path, free: int) -> Verified:
    """Read an archive from beginning to end without writing anything.

    Args:
        source: Path of the archive.
        free: Bytes that its files may take.

    Raises:
        RefusedError: It is not an intact archive of one study.
    """
    contents = _Contents()
    for member, file in members(source):
        _check_member(member, contents, free)
        _read_member(member, file, contents)
    manifest = _manifest(contents)
    document = _study_document(contents, manifest["study"])
    _check_owners(contents, manifest["study"], document)
    return Verified(study=manifest["study"], document=document, files=contents.files)


# --- reading -------------------------------------------------------------------------------------------------------


class _BoundedGzip(gzip.GzipFile):
    """Unpacks a file and refuses large reads, so that no header can ask for more memory than there is."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes."""
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError("a header is larger than any that this harness writes")
        return super().read(size)


def members(source: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield every entry of an archive in its order, with its content if it is a file.

    Raises:
        RefusedError: The archive cannot be read to its end.
    """
    with (
        _refusing(),
        open_regular(source) as file,
        _BoundedGzip(fileobj=file, mode="rb") as packed,
        tarfile.open(fileobj=packed, mode="r:") as tar,
    ):
        for member in tar:
            yield member, tar.extractfile(member) if member.isreg() else None
            tar.members.clear()  # type: ignore[attr-defined]
        while rest := packed.read(_BLOCK):  # up to the checksum of the packed file
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows its end")


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn the standard library's errors about damaged or hostile content, whichever they are, into a refusal."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise  # the disk, not the content
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RefusedError(f"it is damaged or not an archive of this harness ({reason!r})") from error


def blocks(file: IO[bytes] | None) -> Iterator[bytes]:
    """Yield the content of an entry piece by piece.

    Raises:
        RefusedError: It cannot be read.
    """
    while file is not None:
        with _refusing():
            block = file.read(_BLOCK)
        if not block:
            return
        yield block


def _read_member(member: tarfile.TarInfo, file: IO[bytes] | None, contents: _Contents) -> None:
    """Hash one file, and keep its content if it is the manifest or a study's document."""
    name, kept = member.name, bytearray()
    is_document = name == MANIFEST or re.fullmatch(r"studies/[^/]+/study\.json", name) is not None
    if is_document and member.size > JSON_BYTES:
        size, limit = size_in_words(member.size), size_in_words(JSON_BYTES)
        raise RefusedError(f"{name!r} in it has {size}; at most {limit} are allowed")
    digest = hashlib.sha256()
    for block in blocks(file):
        digest.update(block)
        if is_document:
            kept += block
    if is_document:
        contents.documents[name] = bytes(kept)
    if name != MANIFEST:
        contents.files[name] = {"bytes": member.size, "sha256": digest.hexdigest()}


# --- checks --------------------------------------------------------------------------------------------------------


def _check_member(member: tarfile.TarInfo, contents: _Contents, free: int) -> None:
    name = member.name
    if not member.isreg() or member.issparse():
        raise RefusedError(f"{name!r} in it is a {_type_in_words(member)}; only files are allowed")
    if name != MANIFEST and LAYOUT.fullmatch(name) is None:
        raise RefusedError(f"{name!r} in it is not a path that a study's files have")
    if name in contents.files or name in contents.documents:
        raise RefusedError(f"{name!r} is in it twice")
    if len(contents.files) >= MAX_FILES:
        raise RefusedError(f"it has more than {MAX_FILES} files")
    contents.size += member.size
    if contents.size > free:
        raise RefusedError(f"its files take {size_in_words(contents.size)} or more; {size_in_words(free)} are free")


def _type_in_words(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "folder" if member.isdir() else "device or something else"


def _manifest(contents: _Contents) -> dict[str, Any]:
    """Return the manifest after comparing it with what was read."""
    if MANIFEST not in contents.documents:
        raise RefusedError(f"it has no {MANIFEST}: it is not an archive of this harness, or its end is missing")
    manifest = _parsed(contents.documents[MANIFEST], MANIFEST)
    if manifest.get("project") != PROJECT or not isinstance(manifest.get("format"), int):
        raise RefusedError(f"its {MANIFEST} is not one of this harness")
    if manifest["format"] > FORMAT:
        raise RefusedError(f"it was written by a newer harness ({manifest.get('version')}); update this one")
    if not StudyName.is_valid(manifest.get("study")):
        raise RefusedError(f"its {MANIFEST} names no study")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise RefusedError(f"its {MANIFEST} lists no files")
    _check_listed(contents.files, listed)
    return manifest


def _check_listed(files: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
    for name in sorted({*files, *listed}):
        if name not in listed:
            raise RefusedError(f"{name!r} in it is not listed in its {MANIFEST}")
        if name not in files:
            raise RefusedError(f"{name!r} is missing in it")
        if files[name] != listed[name]:
            raise RefusedError(f"{name!r} in it is damaged: its checksum differs from the one in its {MANIFEST}")


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        document = with_whole_characters(parse_json(content), content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise RefusedError(f"{name!r} in it is damaged")
    return document


def _study_document(contents: _Contents, study: str) -> dict[str, Any]:
    name = f"studies/{study}/study.json"
    if name not in contents.documents:
        raise RefusedError(f"{name!r} is missing in it")
    document = fitting(_parsed(contents.documents[name], name), Study)
    if document is None or document["name"] != study:
        raise RefusedError(f"{name!r} in it is not the document of study '{study}'")
    return document


def _check_owners(contents: _Contents, study: str, document: Mapping[str, Any]) -> None:
    """Make sure that every file belongs to the study, and that no file lies where another one needs a folder."""
    known = units_of(document)
    for name in contents.files:
        unit = unit_of(name)
        if not (name.startswith(f"studies/{study}/") if unit is None else unit in known):
            raise RefusedError(f"{name!r} in it does not belong to study '{study}'")
        blocked = {str(parent) for parent in PurePosixPath(name).parents} & contents.files.keys()
        if blocked:
            raise RefusedError(f"{blocked.pop()!r} in it is both a file and a folder")
