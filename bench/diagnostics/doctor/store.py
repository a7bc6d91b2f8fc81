"""Checks of `bench doctor` on whether a store can be used."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.errors import BenchError, first_line
from bench.outputs.commands import command
from bench.store.cleaning.cleanup import make_scratch
from bench.store.cleaning.survey import survey
from bench.store.cleaning.usage import file_system_now, read_usage
from bench.store.contents import free_bytes, nearest_folder, size_by_kind, size_in_words, size_of, units, units_of
from bench.store.files import Store, UnitKind, write_bytes
from bench.store.leases import Leases
from bench.store.outcomes import RESULTS

_FLOOR_BYTES = 1_000_000_000
"""Size of a small study with its tables and its MLflow database."""
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


def writable(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the store can be written, or created."""
    root = request.store.root
    try:
        with _scratch(root) as folder:
            made = "can be written" if root.is_dir() else f"does not exist yet and can be created in {folder.parent}"
            yield Finding(check="store", status=OK, found=f"'{root}' {made}")
    except BenchError as error:
        found, _, remedy = str(error).partition("; ")
        yield Finding(check="store", status=PROBLEM, found=found, remedy=remedy)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Make an empty folder on the store's file system, and delete it after the block."""
    folder = make_scratch(Store(nearest_folder(root)), "doctor")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def locks(request: DoctorRequest) -> Iterator[Finding]:
    """Check that another process cannot get a lock that this process holds."""
    try:
        with _scratch(request.store.root) as folder:
            leases = Leases(folder)
            with leases.lock():
                status = _locked_elsewhere(leases.folder / ".lock")
    except BenchError as error:
        yield Finding(check="locks", status=PROBLEM, found=first_line(error), remedy=_ELSEWHERE)
        return
    if status == _REFUSED:
        yield Finding(check="locks", status=OK, found="a second process cannot get a lock that is held")
    else:
        words = "a second process gets a lock that is held" if status == 0 else f"a second process fails ({status})"
        yield Finding(check="locks", status=PROBLEM, found=words, remedy=_ELSEWHERE)


def _locked_elsewhere(lock: Path) -> int:
    """Return the exit status of a process that tries to get a lock."""
    command = [sys.executable, "-P", "-c", _LOCKED_ELSEWHERE, str(lock)]
    return subprocess.run(command, capture_output=True, timeout=_LOCK_SECONDS, check=False).returncode  # noqa: S603


def atomic_writes(request: DoctorRequest) -> Iterator[Finding]:
    """Check that a file can be synchronised, and renamed over another one."""
    with _scratch(request.store.root) as folder:
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


def clock(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the clock of the store's file system agrees with this machine's."""
    with _scratch(request.store.root) as folder:
        skew = file_system_now(folder) - time.time()
    if abs(skew) > _SKEW_SECONDS:
        found = f"files in the store are stamped {skew:+.0f} s from this machine's time"
        remedy = "set both machines' clocks, e.g. with NTP; ages in `bench status` are wrong until then"
        yield Finding(check="clock", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="clock", status=OK, found="the file system's clock agrees with this machine's")


def space(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the remaining units of all studies fit onto the disk."""
    free, needed = free_bytes(request.store.root), max(_FLOOR_BYTES, _still_needed(request.store))
    found = f"{size_in_words(free)} free, about {size_in_words(needed)} needed"
    if free < needed:
        remedy = (
            f"see what `{command('clean', store=request.store.root)}` would free, or give another disk with --store DIR"
        )
        yield Finding(check="disk", status=PROBLEM, found=found, remedy=remedy)
    else:
        yield Finding(check="disk", status=OK, found=found)


def _still_needed(store: Store) -> int:
    """Estimate the bytes that the remaining units of all studies need, from finished units of the same kind."""
    wanted = set().union(*map(units_of, read_usage(store).studies.values()))
    finished = {unit for unit in units(store) if (store.record(*unit) or {}).get("status") in RESULTS}
    count = Counter(kind for kind, _ in finished)
    size: Counter[UnitKind] = Counter()
    for unit in finished:
        size[unit[0]] += size_of(store.unit(*unit))
    return sum(size[kind] // max(1, count[kind]) for kind, _ in wanted - finished)


def disk_use(request: DoctorRequest) -> Iterator[Finding]:
    """Report the size of the store by kind of unit, and the size of what `bench clean` would delete."""
    if not request.store.root.is_dir():
        yield Finding(check="disk use", status=OK, found="nothing yet")
        return
    used = size_by_kind(request.store)
    kinds = ", ".join(f"{kind} {size_in_words(size)}" for kind, size in used.items() if size)
    spare = sum(size_of(item.path) for item in survey(request.store).items)
    found = f"{size_in_words(sum(used.values()))} in the store{': ' if kinds else ''}{kinds}"
    remedy = f"`{command('clean', store=request.store.root)}` would free {size_in_words(spare)}" if spare else ""
    yield Finding(check="disk use", status=OK, found=found, remedy=remedy)


def measured_times(request: DoctorRequest) -> Iterator[Finding]:
    """Report the tables of measured layers, and how far their times spread."""
    from bench.costs.measured import FOLDER, read_times

    files = sorted((request.store.root / FOLDER).glob("*/*.json"))
    if not files:
        yield Finding(check="measured times", status=OK, found="none; budgets such as 1.2ms@onnxruntime measure them")
    for file in files:
        try:
            times = read_times(str(file))
        except BenchError as error:
            remedy = f"remove {file}; the next study that needs it measures again"
            yield Finding(check="measured times", status=WARN, found=first_line(error), remedy=remedy)
            continue
        networks = ", ".join(f"{network.model} on {network.dataset}" for network in times.networks)
        found = f"{networks}: {len(times.layers)} kinds of layers, {times.in_words()}"
        yield Finding(check="measured times", status=OK, found=found)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("store", writable),
    ("locks", locks),
    ("atomic writes", atomic_writes),
    ("clock", clock),
    ("disk", space),
    ("disk use", disk_use),
    ("measured times", measured_times),
)
