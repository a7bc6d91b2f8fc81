"""The checks of `bench doctor` that look at a store: whether it can be worked in, and whether all in it is intact."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.archives import free_bytes, nearest_folder
from bench.doctor import OK, PROBLEM, WARN, Check, Finding, Visit, one_line, some
from bench.endings import RESULTS
from bench.errors import BenchError
from bench.housekeeping import (
    Claims,
    UnitKey,
    file_system_now,
    folders,
    human,
    make_scratch,
    read_claims,
    size_of,
    survey,
    units,
    units_of,
    usage,
)
from bench.leases import Leases
from bench.staleness import fingerprint, staleness
from bench.store import Store, UnitKind, read_json, write_bytes

_FLOOR_BYTES = 1_000_000_000
"""A small study with its tables and its MLflow database fits into this."""
_SKEW_SECONDS = 5.0
_LOCK_SECONDS = 60.0
_REFUSED = 3
_LOCKED_ELSEWHERE = f"""
import sys
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1], timeout=0).acquire()
except Timeout:
    sys.exit({_REFUSED})
"""
_ELSEWHERE = "put the store on another file system with --store DIR, or mount this one with locks (NFS: version 4)"


# --- whether it can be worked in -----------------------------------------------------------------------------------


def writable(visit: Visit) -> Iterator[Finding]:
    """Whether the store can be written, or made."""
    root = visit.store.root
    try:
        with _scratch(root) as folder:
            made = "can be written" if root.is_dir() else f"is not there yet and can be made in {folder.parent}"
            yield Finding(check="store", status=OK, found=f"'{root}' {made}")
    except BenchError as error:
        found, _, remedy = str(error).partition("; ")
        yield Finding(check="store", status=PROBLEM, found=found, remedy=remedy)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """An empty folder on the store's file system, gone after the block."""
    folder = make_scratch(Store(nearest_folder(root)), "doctor")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def locks(visit: Visit) -> Iterator[Finding]:
    """Whether a lock that this process has is refused to another one."""
    try:
        with _scratch(visit.store.root) as folder:
            leases = Leases(folder)
            with leases.lock():
                status = _locked_elsewhere(leases.folder / ".lock")
    except BenchError as error:
        yield Finding(check="locks", status=PROBLEM, found=one_line(error), remedy=_ELSEWHERE)
        return
    if status == _REFUSED:
        yield Finding(check="locks", status=OK, found="a lock is refused to a second process")
    else:
        words = "a second process gets a lock that is held" if status == 0 else f"a second process fails ({status})"
        yield Finding(check="locks", status=PROBLEM, found=words, remedy=_ELSEWHERE)


def _locked_elsewhere(lock: Path) -> int:
    """The exit status of a process that asks for a lock."""
    command = [sys.executable, "-P", "-c", _LOCKED_ELSEWHERE, str(lock)]
    return subprocess.run(command, capture_output=True, timeout=_LOCK_SECONDS, check=False).returncode  # noqa: S603


def atomic_writes(visit: Visit) -> Iterator[Finding]:
    """Whether a file can be synchronised, and renamed over another one."""
    with _scratch(visit.store.root) as folder:
        try:
            for content in (b"first", b"second"):
                write_bytes(folder / "file", content)
            fault = None if (folder / "file").read_bytes() == b"second" else "a renamed file has its old content"
        except OSError as error:
            fault = f"a file cannot be synchronised and renamed: {error.strerror}"
    if fault is None:
        yield Finding(check="atomic writes", status=OK, found="files are synchronised and renamed")
    else:
        yield Finding(check="atomic writes", status=PROBLEM, found=fault, remedy=_ELSEWHERE)


def clock(visit: Visit) -> Iterator[Finding]:
    """Whether the clock that stamps the store's files is that of this machine."""
    with _scratch(visit.store.root) as folder:
        skew = file_system_now(folder) - time.time()
    if abs(skew) > _SKEW_SECONDS:
        found = f"files in the store are stamped {skew:+.0f} s from this machine's time"
        remedy = "set both machines' clocks, e.g. with NTP; ages in `bench status` are wrong until then"
        yield Finding(check="clock", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="clock", status=OK, found="that of the store's file system agrees with this machine's")


def space(visit: Visit) -> Iterator[Finding]:
    """Whether what the stored studies still need fits onto the disk."""
    free, needed = free_bytes(visit.store.root), max(_FLOOR_BYTES, _still_needed(visit.store))
    found = f"{human(free)} free, about {human(needed)} needed"
    if free < needed:
        remedy = "see what `bench clean` would free, or give another disk with --store DIR"
        yield Finding(check="disk", status=PROBLEM, found=found, remedy=remedy)
    else:
        yield Finding(check="disk", status=OK, found=found)


def _still_needed(store: Store) -> int:
    """Bytes that the open units of all studies will take, judged by those of their kind that have finished."""
    wanted = set().union(*map(units_of, read_claims(store).studies.values()))
    finished = {unit for unit in units(store) if (store.record(*unit) or {}).get("status") in RESULTS}
    count = Counter(kind for kind, _ in finished)
    size: Counter[UnitKind] = Counter()
    for unit in finished:
        size[unit[0]] += size_of(store.unit(*unit))
    return sum(size[kind] // max(1, count[kind]) for kind, _ in wanted - finished)


def disk_use(visit: Visit) -> Iterator[Finding]:
    """What the store holds by kind, and what of it nobody needs."""
    if not visit.store.root.is_dir():
        yield Finding(check="disk use", status=OK, found="nothing yet")
        return
    used = usage(visit.store)
    kinds = ", ".join(f"{kind} {human(size)}" for kind, size in used.items() if size)
    spare = sum(size_of(item.path) for item in survey(visit.store).items)
    found = f"{human(sum(used.values()))} in the store{': ' if kinds else ''}{kinds}"
    remedy = f"`bench clean` would free {human(spare)}" if spare else ""
    yield Finding(check="disk use", status=OK, found=found, remedy=remedy)


# --- whether what it holds is intact -------------------------------------------------------------------------------


def studies(visit: Visit) -> Iterator[Finding]:
    """Whether the document of every study is as it was written."""
    claims = read_claims(visit.store)
    for name in claims.damaged:
        document = read_json(visit.store.study(name) / "study.json")
        command = str(document.get("command")) if isinstance(document, dict) else "the study's `bench run` command"
        found = f"the study.json of '{name}' is damaged or missing"
        remedy = f"run {command} again, which writes it anew and repeats nothing"
        yield Finding(check="studies", status=PROBLEM, found=found, remedy=remedy)
    if not claims.damaged:
        yield Finding(check="studies", status=OK, found=f"{len(claims.studies)} intact")


def all_units(store: Store) -> Iterator[tuple[UnitKind, str]]:
    """Every unit of a store, trials too."""
    for kind, identity in units(store):
        yield kind, identity
        if kind == "tuning":
            trials = folders(store.unit(kind, identity) / "trials")
            yield from (("trials", f"{identity}-{path.name}") for path in trials if path.name.isdecimal())


def records(visit: Visit) -> Iterator[Finding]:
    """Whether every record, and every file that a finished unit lists, is as it was written."""
    store, intact, faults = visit.store, 0, []
    for kind, identity in all_units(store):
        record = store.record(kind, identity)
        if record is None:
            present = (store.unit(kind, identity) / "record.json").exists()
            fault = "its record is damaged" if present else None
        else:
            finished = record.get("status") in RESULTS
            fault = store.damage(kind, identity, record, thorough=visit.thorough) if finished else None
            intact += fault is None
        if fault is not None:
            faults.append(f"{kind}/{identity} ({fault})")
    if faults:
        remedy = "run the study's `bench run` command again, which makes them anew"
        yield Finding(check="records", status=PROBLEM, found=f"{len(faults)} damaged: {some(faults)}", remedy=remedy)
    else:
        how = "all files hashed" if visit.thorough else "large files by size; --thorough hashes them"
        yield Finding(check="records", status=OK, found=f"{intact} intact ({how})")


def leases(visit: Visit) -> Iterator[Finding]:
    """Whether every lease has a living holder."""
    claims = read_claims(visit.store)
    found = {path.stem for path in (visit.store.root / "leases").glob("*.json")}
    dead = sorted(found - claims.names)
    if claims.unreadable:
        words = f"{len(claims.unreadable)} cannot be read: {some(claims.unreadable)}"
        remedy = "look again in ten minutes; when they are still there, `bench clean --yes` removes them"
        yield Finding(check="leases", status=WARN, found=words, remedy=remedy)
    if dead:
        words = f"{len(dead)} of dead holders or unreadable: {some(dead)}"
        yield Finding(check="leases", status=WARN, found=words, remedy="bench clean --yes")
    if not dead and not claims.unreadable:
        yield Finding(check="leases", status=OK, found=f"{len(claims.living)} of living holders, none of dead ones")


def orphans(visit: Visit) -> Iterator[Finding]:
    """Whether somebody works on every unit that says so."""
    store, held = visit.store, read_claims(visit.store).names
    running = [unit for unit in all_units(store) if (store.record(*unit) or {}).get("status") == "running"]
    lost = [f"{kind}/{identity}" for kind, identity in running if f"{kind}-{identity}" not in held]
    if lost:
        remedy = "run the study's `bench run` command again, which goes on with them"
        found = f"{len(lost)} say that they are worked on and are not: {some(lost)}"
        yield Finding(check="units at work", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="units at work", status=OK, found=f"{len(running)}, each with a living process")


def stale(visit: Visit) -> Iterator[Finding]:
    """Which results were made with something that has changed since."""
    claims, seen = read_claims(visit.store), set[UnitKey]()
    found: Counter[tuple[str, str]] = Counter()
    for document in claims.studies.values():
        for unit in units_of(document) - seen:
            seen.add(unit)
            outdated = _staleness(visit.store.record(*unit), document)
            found.update([outdated] if outdated is not None else [])
    for (method, reason), count in sorted(found.items()):
        words, remedy = f"{count} results of {method}: {reason}", _remedy_of_stale(claims, method)
        yield Finding(check="stale results", status=WARN, found=words, remedy=remedy)
    if not found:
        yield Finding(check="stale results", status=OK, found="none")


def _staleness(record: Mapping[str, Any] | None, document: Mapping[str, Any]) -> tuple[str, str] | None:
    """The method of a stale result, and why it is stale."""
    if record is None or record.get("status") not in RESULTS:
        return None
    method = record.get("method")
    try:
        reason = staleness(record, fingerprint(method, document.get("data_checksum")))
    except BenchError as error:
        reason = one_line(error).partition(":")[0]
    return None if reason is None else (str(method or "pretraining"), reason)


def _remedy_of_stale(claims: Claims, method: str) -> str:
    commands = sorted(
        str(document.get("command"))
        for document in claims.studies.values()
        if method in ((document.get("spec") or {}).get("methods") or ()) or method == "pretraining"
    )
    return f"{some(commands, 1)}, which makes them anew" if commands else ""


def tracking_database(visit: Visit) -> Iterator[Finding]:
    """Whether MLflow's database in the store is intact."""
    path = visit.store.root / "mlflow.db"
    if not path.is_file():
        yield Finding(check="MLflow database", status=OK, found="there is none in the store")
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            (verdict,) = connection.execute("pragma integrity_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        found = f"cannot be checked: {error}"
        yield Finding(check="MLflow database", status=WARN, found=found, remedy="look again when nobody writes to it")
        return
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict == "ok":
        yield Finding(check="MLflow database", status=OK, found=f"intact, {human(path.stat().st_size)}")
    else:
        remedy = f"mv '{path}' '{path}.damaged'; the next `bench run` of each study writes it anew"
        yield Finding(check="MLflow database", status=PROBLEM, found=f"damaged: {one_line(verdict)}", remedy=remedy)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("store", writable),
    ("locks", locks),
    ("atomic writes", atomic_writes),
    ("clock", clock),
    ("disk", space),
    ("disk use", disk_use),
    ("studies", studies),
    ("records", records),
    ("leases", leases),
    ("units at work", orphans),
    ("stale results", stale),
    ("MLflow database", tracking_database),
)
