"""A study as one file: written so that equal content gives equal bytes, and read back as if it came from an enemy.

The file is a gzipped tar of regular files: `studies/<name>/…`, the study's units as the store has them, and last
`MANIFEST.json` with the size and checksum of every file. Restoring reads the file twice: first it is verified from
beginning to end and nothing is written, then it is unpacked into a hidden folder of the store, from which units
are renamed into place under the lock of the leases.
"""

import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import bench
from bench.errors import BenchError
from bench.store.cleanup import UnitKey, folders, human, make_scratch, read_claims, units_of
from bench.store.files import Store, UnitKind, read_checked, write_checked
from bench.store.leases import Heartbeat, Leases
from bench.store.outcomes import RESULTS, RETRIABLE

FORMAT = 1
"""Of the archive; raised when an older harness could not read it."""
MANIFEST = "MANIFEST.json"
MAX_FILES = 200_000
"""More than any study has."""
MAX_DOCUMENT_BYTES = 64 << 20
"""Of the manifest and of a study's document, which are read as a whole."""

_BLOCK = 1 << 20
_LARGEST_READ = 4 << 20
"""What is asked for in one read; tar's own headers can ask for any size."""
_PROJECT = "sbs-bench"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.,+=@() -]{0,199}"
_ID = r"(?!.*\.stale-)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_LAYOUT = re.compile(
    rf"studies/{_PART}(/{_PART}){{1,5}}"
    rf"|(?P<kind>pretrained|tuning|runs)/(?P<id>{_ID})/(checkpoints/)?{_PART}"
    rf"|tuning/(?P<tuning>{_ID})/trials/[0-9]{{1,9}}/(checkpoints/)?{_PART}",
    re.ASCII,
)
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Archived:
    """What went into an archive.

    Attributes:
        units, files: How many.
        size: Of the archive in bytes.
        left_out: Files of the study's folder that are none of the harness's.
    """

    units: int
    files: int
    size: int
    left_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """What became of an archive's units.

    Attributes:
        study: The name under which the study is in the store now.
        added: Units that the store has from the archive.
        kept: Units of which the store had something at least as good.
    """

    study: str
    added: int
    kept: int


# --- archiving -----------------------------------------------------------------------------------------------------


def archive(store: Store, name: str, target: Path) -> Archived:
    """Write a study and all its units into one file, which appears whole or not at all.

    Raises:
        BenchError: There is no such study, or the file is there already or cannot be written.
    """
    document = store.load_study(name)
    if os.path.lexists(target):
        raise BenchError(f"'{target}' is there already; give another name, or remove it first: rm '{target}'")
    files, left_out = _files(store, document)
    with _appearing(target) as file:
        _write(file, name, files)
    return Archived(
        units=len({unit for found in files if (unit := unit_of(found)) is not None}),
        files=len(files),
        size=target.stat().st_size,
        left_out=left_out,
    )


def _files(store: Store, document: Mapping[str, Any]) -> tuple[dict[str, Path], int]:
    """Every file of a study by its name in the archive, in the archive's order, and how many were left out."""
    study = store.study(str(document["name"]))
    found = dict(_below(study, f"studies/{study.name}"))
    for kind, identity in units_of(document):
        found |= _unit_files(store.unit(kind, identity), f"{kind}/{identity}")
    # A record is written after the files that it lists; read before them, it never promises what is not there.
    order = sorted(found, key=lambda name: (PurePosixPath(name).parent.parts, not name.endswith("/record.json"), name))
    kept = {name: found[name] for name in order if _LAYOUT.fullmatch(name)}
    return kept, len(found) - len(kept)


def _unit_files(folder: Path, name: str) -> dict[str, Path]:
    found = {f"{name}/{path.name}": path for path in _regular(folder)}
    if (read_checked(folder / "record.json") or {}).get("status") not in RESULTS:
        found |= {f"{name}/checkpoints/{path.name}": path for path in _regular(folder / "checkpoints")}
    for trial in folders(folder / "trials"):
        if trial.name.isdecimal():
            found |= _unit_files(trial, f"{name}/trials/{trial.name}")
    return found


def _regular(folder: Path) -> list[Path]:
    """The files in a folder without hidden ones and links; none when there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name[0] != "." and path.is_file() and not path.is_symlink()]


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The files below a folder by their name in the archive."""
    yield from ((f"{name}/{path.name}", path) for path in _regular(folder))
    for inner in folders(folder):
        yield from _below(inner, f"{name}/{inner.name}")


@contextmanager
def _appearing(target: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when the block ends, and only if there is still none of that name."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename_anew(temporary, target)
    except OSError as error:
        raise BenchError(f"cannot write '{target}': {error.strerror or error}; nothing was left there") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _rename_anew(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        source.rename(target)


def _write(file: IO[bytes], study: str, files: Mapping[str, Path]) -> None:
    listed = {}
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=4) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in files.items():
            listed[name] = _add(tar, name, path)
        manifest = {"format": FORMAT, "project": _PROJECT, "version": bench.__version__, "study": study}
        content = (json.dumps({**manifest, "files": listed}, indent=1, sort_keys=True) + "\n").encode()
        _add_content(tar, MANIFEST, content)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> dict[str, Any]:
    """Add a file as it is at this moment; returns its size and checksum."""
    with path.open("rb") as file:
        info = _entry(name, os.fstat(file.fileno()).st_size)
        hashing = _Hashing(file)
        tar.addfile(info, hashing)  # type: ignore[arg-type]
    return {"bytes": info.size, "sha256": hashing.digest.hexdigest()}


def _add_content(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    import io

    tar.addfile(_entry(name, len(content)), io.BytesIO(content))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    """An entry without owner and time, so that equal content gives equal archives."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


class _Hashing:
    """A file whose content is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """So many bytes."""
        content = self._file.read(size)
        self.digest.update(content)
        return content


# --- verifying -----------------------------------------------------------------------------------------------------


def unit_of(name: str) -> UnitKey | None:
    """The unit to which a file of an archive belongs; `None` for a study's files."""
    match = _LAYOUT.fullmatch(name)
    if match is None or name.startswith("studies/"):
        return None
    kinds: dict[str | None, UnitKind] = {"pretrained": "pretrained", "runs": "runs"}
    return kinds.get(match["kind"], "tuning"), match["id"] or match["tuning"]


@dataclass(kw_only=True)
class _Contents:
    """What an archive holds, as far as it was read.

    Attributes:
        files: Size and checksum of each file.
        documents: Content of the manifest and of the study's document.
        size: Bytes of all files.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verified:
    """An archive that holds one study and its units, every file as it was written."""

    study: str
    document: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


class _RefusedError(Exception):
    """Why an archive is not accepted."""


class _Bounded(gzip.GzipFile):
    """A packed file of which no header can ask for more memory than there is."""

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes."""
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError("a header is larger than any that this harness writes")
        return super().read(size)


def _verify(source: Path, free: int) -> _Verified:
    """Read an archive from beginning to end; nothing is written.

    Raises:
        _RefusedError: It is not an intact archive of one study.
    """
    contents = _Contents()
    for member, file in _members(source):
        _check_member(member, contents, free)
        _take(member, file, contents)
    manifest = _manifest(contents)
    document = _study_document(contents, manifest["study"])
    _check_belongs(contents, manifest["study"], document)
    return _Verified(study=manifest["study"], document=document, files=contents.files)


def _members(source: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every entry of an archive in its order, with its content.

    Raises:
        _RefusedError: It cannot be read to its end.
    """
    with _intact(), _Bounded(source, "rb") as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
        for member in tar:
            yield member, tar.extractfile(member) if member.isreg() else None
            tar.members.clear()  # type: ignore[attr-defined]
        while rest := packed.read(_BLOCK):  # up to the checksum of the packed file
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows its end")


@contextmanager
def _intact() -> Iterator[None]:
    """What the standard library raises over damaged or hostile content, as a refusal."""
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _RefusedError(f"it is damaged or no archive of this harness ({reason!r})") from error


def _check_member(member: tarfile.TarInfo, contents: _Contents, free: int) -> None:
    name = member.name
    if not member.isreg() or member.issparse():
        raise _RefusedError(f"{name!r} in it is a {_kind_of_member(member)}; only files are allowed")
    if name != MANIFEST and _LAYOUT.fullmatch(name) is None:
        raise _RefusedError(f"{name!r} in it is not where a study's files are")
    if name in contents.files or name in contents.documents:
        raise _RefusedError(f"{name!r} is in it twice")
    if len(contents.files) >= MAX_FILES:
        raise _RefusedError(f"it has more than {MAX_FILES} files")
    contents.size += member.size
    if contents.size > free:
        raise _RefusedError(f"its files take {human(contents.size)} or more, and {human(free)} are free")


def _kind_of_member(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "folder" if member.isdir() else "device or something else"


def _take(member: tarfile.TarInfo, file: IO[bytes] | None, contents: _Contents) -> None:
    """Read one file: its checksum, and its content when that says what the archive is."""
    name, kept = member.name, bytearray()
    is_document = name == MANIFEST or re.fullmatch(r"studies/[^/]+/study\.json", name) is not None
    if is_document and member.size > MAX_DOCUMENT_BYTES:
        raise _RefusedError(f"{name!r} in it has {human(member.size)}; at most {human(MAX_DOCUMENT_BYTES)} are allowed")
    digest = hashlib.sha256()
    for block in _blocks(file):
        digest.update(block)
        if is_document:
            kept += block
    if is_document:
        contents.documents[name] = bytes(kept)
    if name != MANIFEST:
        contents.files[name] = {"bytes": member.size, "sha256": digest.hexdigest()}


def _blocks(file: IO[bytes] | None) -> Iterator[bytes]:
    while file is not None:
        with _intact():
            block = file.read(_BLOCK)
        if not block:
            return
        yield block


def _manifest(contents: _Contents) -> dict[str, Any]:
    """The manifest, once it fits what was read."""
    if MANIFEST not in contents.documents:
        raise _RefusedError(f"it has no {MANIFEST}; it is no archive of this harness, or its end is missing")
    manifest = _parsed(contents.documents[MANIFEST], MANIFEST)
    if manifest.get("project") != _PROJECT or not isinstance(manifest.get("format"), int):
        raise _RefusedError(f"its {MANIFEST} is not one of this harness")
    if manifest["format"] > FORMAT:
        raise _RefusedError(f"it was written by a newer harness ({manifest.get('version')}); update this one")
    if not isinstance(study := manifest.get("study"), str) or _STUDY_NAME.fullmatch(study) is None:
        raise _RefusedError(f"its {MANIFEST} names no study")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise _RefusedError(f"its {MANIFEST} lists no files")
    _check_listed(contents.files, listed)
    return manifest


def _check_listed(files: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
    for name in sorted({*files, *listed}):
        if name not in listed:
            raise _RefusedError(f"{name!r} in it is not listed in its {MANIFEST}")
        if name not in files:
            raise _RefusedError(f"{name!r} is missing in it")
        if files[name] != listed[name]:
            raise _RefusedError(f"{name!r} in it is damaged: its checksum is another one")


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _RefusedError(f"{name!r} in it is damaged")
    return document


def _study_document(contents: _Contents, study: str) -> dict[str, Any]:
    name = f"studies/{study}/study.json"
    if name not in contents.documents:
        raise _RefusedError(f"{name!r} is missing in it")
    document = _parsed(contents.documents[name], name)
    lists = [document.get(key) for key in ("runs", "tunings", "pretrained")]
    if document.get("name") != study or not all(isinstance(entry, list) for entry in lists):
        raise _RefusedError(f"{name!r} in it is not the document of study '{study}'")
    return document


def _check_belongs(contents: _Contents, study: str, document: Mapping[str, Any]) -> None:
    """Every file is the study's or one of its units', and none lies where another one needs a folder."""
    known = units_of(document)
    for name in contents.files:
        unit = unit_of(name)
        if not (name.startswith(f"studies/{study}/") if unit is None else unit in known):
            raise _RefusedError(f"{name!r} in it does not belong to study '{study}'")
        blocked = {str(parent) for parent in PurePosixPath(name).parents} & contents.files.keys()
        if blocked:
            raise _RefusedError(f"{blocked.pop()!r} in it is both a file and a folder")


# --- restoring -----------------------------------------------------------------------------------------------------


def restore(store: Store, source: Path, name: str | None = None) -> Restored:
    """Bring an archived study back into a store. What the store has already is kept where it is as good.

    Args:
        store: Where to; made when there is none.
        source: The archive.
        name: Of the study in the store; the archived name when absent.

    Raises:
        BenchError: The archive is not accepted, or the store has another study of that name.
    """
    if name is not None and _STUDY_NAME.fullmatch(name) is None:
        raise BenchError(
            f"--name '{name}' is no name of a study; use letters, digits, '_', '.' and '-', e.g. --name s2"
        )
    try:
        verified = _verify(source, free_bytes(store.root))
        chosen = name or verified.study
        _check_conflict(store, chosen, verified.document)
        store.prepare()
        return _restored(store, source, verified, chosen)
    except _RefusedError as error:
        raise BenchError(f"'{source}' cannot be restored: {error}; nothing of it is in the store") from error
    except OSError as error:
        where = error.filename or source
        raise BenchError(f"cannot restore '{source}': {error.strerror or error}: {where}") from error


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.is_dir())


def _check_conflict(store: Store, name: str, document: Mapping[str, Any]) -> None:
    path = store.study(name) / "study.json"
    if not path.exists():
        return
    present = read_checked(path)
    if present is None:
        raise BenchError(f"'{path}' is damaged; remove that study with `bench clean {name} --yes`, or add --name NEW")
    if _essence(present) != _essence(document):
        raise BenchError(
            f"the store has another study '{name}' with a different specification; restore this one under another "
            "name with --name NEW"
        )


def _essence(document: Mapping[str, Any]) -> Any:
    """What makes a study the same under another name."""
    spec = {key: value for key, value in dict(document.get("spec") or {}).items() if key != "name"}
    return spec, [document.get(key) for key in ("runs", "tunings", "pretrained")]


def _restored(store: Store, source: Path, verified: _Verified, name: str) -> Restored:
    scratch = make_scratch(store, "restore")
    lease = Leases(store.root).acquire(scratch.name.removeprefix("."), f"bench restore of study {name}")
    try:
        if lease is None:
            raise RuntimeError("a new lease is held by somebody else")
        with Heartbeat(lease, _ignore):
            fresh = Store(scratch)
            _unpack(source, verified, scratch)
            _rename_study(fresh, verified.study, name)
            _check_records(fresh, verified)
            return _place(store, fresh, verified, name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _ignore() -> None:
    """Nobody takes over the unpacking of an archive."""


def _unpack(source: Path, verified: _Verified, folder: Path) -> None:
    """Unpack what was verified, and verify again what is written: the file may be another one by now."""
    for member, file in _members(source):
        if member.name == MANIFEST:
            continue
        expected = verified.files.get(member.name)
        if expected is None or not member.isreg() or _write_file(folder / member.name, file) != expected:
            raise _RefusedError(f"{member.name!r} in it changed while it was read")
    getattr(os, "sync", lambda: None)()  # once for all files, before any of them has its final name


def _write_file(path: Path, file: IO[bytes] | None) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        for block in _blocks(file):
            target.write(block)
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _rename_study(fresh: Store, old: str, new: str) -> None:
    """Give the unpacked study its name."""
    document = read_checked(fresh.study(old) / "study.json")
    if document is None:
        raise _RefusedError(f"the study.json of '{old}' in it is not as it was written")
    if old != new:
        fresh.study(old).rename(fresh.study(new))
        spec = {**document["spec"], "name": new}
        write_checked(fresh.study(new) / "study.json", {**document, "name": new, "spec": spec})


def _check_records(fresh: Store, verified: _Verified) -> None:
    """A record that can be read is that of the unit in whose folder it lies."""
    for kind, identity in units_of(verified.document):
        record = read_checked(fresh.unit(kind, identity) / "record.json")
        if record is not None and record.get("id") != identity:
            raise _RefusedError(f"the record in {kind}/{identity} is that of {record.get('id')!r}")


def _place(store: Store, fresh: Store, verified: _Verified, name: str) -> Restored:
    """Rename units and study into the store, all under one hold of the lock, so that nobody sees half of it."""
    found = sorted({unit for file in verified.files if (unit := unit_of(file)) is not None})
    better = [unit for unit in found if _rank(fresh, unit) > _rank(store, unit)]
    with Leases(store.root).lock():
        _check_conflict(store, name, verified.document)
        claims = read_claims(store)
        added = [unit for unit in better if unit not in claims.in_use]
        for unit in added:
            _put(fresh.unit(*unit), store.unit(*unit))
        if not (store.study(name) / "study.json").exists():
            _put_study(fresh.study(name), store.study(name))
    return Restored(study=name, added=len(added), kept=len(found) - len(added))


def _rank(store: Store, unit: UnitKey) -> int:
    """How much a store has of a unit: nothing, something, its failure, its result."""
    record = store.record(*unit)
    if record is None:
        return 0 if store.unit(*unit).is_dir() else -1
    if record.get("status") in RESULTS and store.damage(*unit, record) is None:
        return 3
    return 2 if record.get("status") in RETRIABLE else 1


def _put(source: Path, target: Path) -> None:
    """Rename a unit to where it belongs; a lesser one that is there goes to where the fresh one came from."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        target.rename(source.with_name(f"{source.name}.replaced"))
    source.rename(target)


def _put_study(source: Path, target: Path) -> None:
    """Rename a study's files to where they belong, its document last: with it the study is there."""
    files = [path for _, path in _below(source, "")]
    for path in sorted(files, key=lambda path: (path.name == "study.json", path)):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
