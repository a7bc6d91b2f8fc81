"""Restoring of an archived study into a store that may already have parts of it.

The archive is read twice. First it is verified and nothing is written. Then it is unpacked into a hidden folder of the
store, from which units are renamed to their final names under the lock of the leases.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.errors import BenchError
from bench.inputs.names import StudyName
from bench.outputs.commands import command
from bench.store.archive.layout import MANIFEST, files_below, unit_of
from bench.store.archive.verifying import RefusedError, Verified, blocks, members, verify
from bench.store.cleaning.cleanup import make_scratch
from bench.store.cleaning.usage import read_usage
from bench.store.contents import UnitKey, free_bytes, units_of
from bench.store.files import Store, read_checked, read_record, write_checked
from bench.store.leases import Heartbeat, Leases, ignore_loss
from bench.store.outcomes import RESULTS, RETRIABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """Outcome of restoring an archive.

    Attributes:
        study: Name that the study has in the store.
        added: Number of units that were taken from the archive.
        kept: Number of units of which the store already had something at least as good.
    """

    study: str
    added: int
    kept: int


def restore(store: Store, source: Path, name: str | None = None) -> Restored:
    """Bring an archived study into a store. A unit of the store is kept if it is at least as good as the archived one.

    Args:
        store: Store to restore into; made if it does not exist.
        source: Path of the archive.
        name: Name that the study gets in the store; by default, its archived name.

    Raises:
        BenchError: The archive is not accepted, or the store has another study of that name.
    """
    if name is not None and not StudyName.is_valid(name):
        raise BenchError(
            f"--name '{name}' is not a valid name of a study; use letters, digits, '_', '.' and '-', e.g. --name s2"
        )
    try:
        verified = verify(source, free_bytes(store.root))
        chosen = name or verified.study
        _check_conflict(store, chosen, verified.document)
        store.prepare()
        return _restore_verified(store, source, verified, chosen)
    except RefusedError as error:
        raise BenchError(f"cannot restore '{source}': {error}; the store is unchanged") from error
    except OSError as error:
        path = error.filename or source
        raise BenchError(f"cannot restore '{source}': {error.strerror or error}: {path}") from error


def _check_conflict(store: Store, name: str, document: Mapping[str, Any]) -> None:
    """Make sure that the store has no other study of that name."""
    path = store.study(name) / "study.json"
    if not path.exists():
        return
    present = store.study_document(name)
    if present is None:
        raise BenchError(
            f"'{path}' is damaged; remove that study with "
            f"`{command('clean', name, '--yes', store=store.root)}`, or add --name NEW"
        )
    if _identity(present) != _identity(document):
        raise BenchError(
            f"the store has another study '{name}' with a different specification; restore this one under another "
            "name with --name NEW"
        )


def _identity(document: Mapping[str, Any]) -> Any:
    """Return what two documents of the same study share even if the study has two names."""
    spec = {key: value for key, value in dict(document.get("spec") or {}).items() if key != "name"}
    return spec, [document.get(key) for key in ("runs", "tunings", "pretrained")]


def _restore_verified(store: Store, source: Path, verified: Verified, name: str) -> Restored:
    scratch = make_scratch(store, "restore")
    lease = Leases(store.root).acquire(scratch.name.removeprefix("."), f"bench restore of study {name}")
    try:
        if lease is None:
            raise RuntimeError("another process holds a lease with a random name")
        with Heartbeat(lease, ignore_loss):
            unpacked = Store(scratch)
            _unpack(source, verified, scratch)
            _rename_study(unpacked, verified.study, name)
            _check_records(unpacked, verified)
            return _install(store, unpacked, verified, name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# --- unpacking -----------------------------------------------------------------------------------------------------


def _unpack(source: Path, verified: Verified, folder: Path) -> None:
    """Unpack a verified archive and verify each file again: the archive may have been replaced meanwhile."""
    for member, file in members(source):
        if member.name == MANIFEST:
            continue
        expected = verified.files.get(member.name)
        if expected is None or not member.isreg() or _write_file(folder / member.name, file) != expected:
            raise RefusedError(f"{member.name!r} in it changed while it was read")
    getattr(os, "sync", lambda: None)()  # once for all files, before any of them gets its final name


def _write_file(path: Path, file: IO[bytes] | None) -> dict[str, Any]:
    """Write one file; return its size and checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        for block in blocks(file):
            target.write(block)
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _rename_study(unpacked: Store, old: str, new: str) -> None:
    document = unpacked.study_document(old)
    if document is None:
        raise RefusedError(f"the study.json of '{old}' in it does not have its checksum")
    path = unpacked.study(old) / "study.json"
    if (read_checked(path) or {}).get("command") != document.get("command"):  # it had a password
        write_checked(path, document)
    if old != new:
        unpacked.study(old).rename(unpacked.study(new))
        spec = {**document["spec"], "name": new}
        write_checked(unpacked.study(new) / "study.json", {**document, "name": new, "spec": spec})


def _check_records(unpacked: Store, verified: Verified) -> None:
    """Make sure that every readable record is that of the unit in whose folder it lies."""
    for kind, identity in units_of(verified.document):
        record = read_record(unpacked.unit(kind, identity))
        if record is not None and record.get("id") != identity:
            raise RefusedError(f"the record in {kind}/{identity} is that of {record.get('id')!r}")


# --- moving into the store -----------------------------------------------------------------------------------------


def _install(store: Store, unpacked: Store, verified: Verified, name: str) -> Restored:
    """Rename units and study into the store, under one hold of the lock, so that no process sees half of them."""
    archived = sorted({unit for file in verified.files if (unit := unit_of(file)) is not None})
    better = [unit for unit in archived if _rank(unpacked, unit) > _rank(store, unit)]
    with Leases(store.root).lock():
        _check_conflict(store, name, verified.document)
        usage = read_usage(store)
        added = [unit for unit in better if unit not in usage.in_use]
        for unit in added:
            _install_unit(unpacked.unit(*unit), store.unit(*unit))
        if not (store.study(name) / "study.json").exists():
            _install_study(unpacked.study(name), store.study(name))
    return Restored(study=name, added=len(added), kept=len(archived) - len(added))


def _rank(store: Store, unit: UnitKey) -> int:
    """Return how much a store has of a unit.

    Returns:
        3 for an intact result, 2 for a final failure, 1 for another record, 0 for a folder without a record, -1 for
        nothing.
    """
    record = store.record(*unit)
    if record is None:
        return 0 if store.unit(*unit).is_dir() else -1
    if record.get("status") in RESULTS and store.damage(*unit, record) is None:
        return 3
    return 2 if record.get("status") in RETRIABLE else 1


def _install_unit(source: Path, target: Path) -> None:
    """Rename a unit to its final name; a lesser one of that name is moved into the hidden folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        target.rename(source.with_name(f"{source.name}.replaced"))
    source.rename(target)


def _install_study(source: Path, target: Path) -> None:
    """Rename a study's files to their final names, its document last: the document makes it a study."""
    files = [path for _, path in files_below(source, "")]
    for path in sorted(files, key=lambda path: (path.name == "study.json", path)):
        final = target / path.relative_to(source)
        final.parent.mkdir(parents=True, exist_ok=True)
        path.replace(final)
