"""Checks of `bench doctor` on the integrity of a store's contents."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.diagnostics.wording import some
from bench.errors import first_line
from bench.outputs.commands import command, shell, study_command
from bench.store.cleaning.usage import StoreUsage, read_usage
from bench.store.contents import UnitKey, folders, size_in_words, units, units_of
from bench.store.files import Store, UnitKind, read_json
from bench.store.outcomes import RESULTS
from bench.store.staleness import why_stale
from bench.store.urls import without_secrets


def studies(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the document of every study is undamaged."""
    usage = read_usage(request.store)
    for name in usage.damaged:
        document = read_json(request.store.study(name) / "study.json")
        stated = without_secrets(str(document.get("command"))) if isinstance(document, dict) else ""
        known = study_command(stated, request.store.root)
        again = f"`{known}`" if known else "the study's command"
        found = f"the study.json of '{name}' is damaged or missing"
        remedy = f"run {again} again; it writes the document again and repeats no unit"
        yield Finding(check="studies", status=PROBLEM, found=found, remedy=remedy)
    if not usage.damaged:
        yield Finding(check="studies", status=OK, found=f"{len(usage.studies)} intact")


def all_units(store: Store) -> Iterator[tuple[UnitKind, str]]:
    """Yield every unit of a store, including trials."""
    for kind, identity in units(store):
        yield kind, identity
        if kind == "tuning":
            trials = folders(store.unit(kind, identity) / "trials")
            yield from (("trials", f"{identity}-{path.name}") for path in trials if path.name.isdecimal())


def records(request: DoctorRequest) -> Iterator[Finding]:
    """Check that every record, and every file that a finished unit lists, is undamaged."""
    store, intact, faults = request.store, 0, []
    for kind, identity in all_units(store):
        record = store.record(kind, identity)
        if record is None:
            present = (store.unit(kind, identity) / "record.json").exists()
            fault = "its record is damaged" if present else None
        else:
            finished = record.get("status") in RESULTS
            fault = store.damage(kind, identity, record, thorough=request.thorough) if finished else None
            intact += fault is None
        if fault is not None:
            faults.append(f"{kind}/{identity} ({fault})")
    if faults:
        remedy = "run the study's command again; it repeats these units"
        yield Finding(check="records", status=PROBLEM, found=f"{len(faults)} damaged: {some(faults)}", remedy=remedy)
    else:
        how = "all files hashed" if request.thorough else "large files by size; --thorough hashes them"
        yield Finding(check="records", status=OK, found=f"{intact} intact ({how})")


def leases(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the process of every lease is alive."""
    usage = read_usage(request.store)
    names = {path.stem for path in (request.store.root / "leases").glob("*.json")}
    dead = sorted(names - usage.names)
    if usage.unreadable:
        words = f"{len(usage.unreadable)} cannot be read: {some(usage.unreadable)}"
        remedy = f"check again in ten minutes; if they are still there, `{_clean(request)}` removes them"
        yield Finding(check="leases", status=WARN, found=words, remedy=remedy)
    if dead:
        words = f"{len(dead)} of processes that died, or unreadable: {some(dead)}"
        yield Finding(check="leases", status=WARN, found=words, remedy=f"`{_clean(request)}`")
    if not dead and not usage.unreadable:
        yield Finding(
            check="leases", status=OK, found=f"{len(usage.living)} of living processes, none of processes that died"
        )


def _clean(request: DoctorRequest) -> str:
    return command("clean", "--yes", store=request.store.root)


def orphans(request: DoctorRequest) -> Iterator[Finding]:
    """Check that a process is running every unit whose status is running."""
    store, held = request.store, read_usage(request.store).names
    running = [unit for unit in all_units(store) if (store.record(*unit) or {}).get("status") == "running"]
    lost = [f"{kind}/{identity}" for kind, identity in running if f"{kind}-{identity}" not in held]
    if lost:
        remedy = "run the study's command again; it continues these units"
        found = f"{len(lost)} are marked as running, but no process runs them: {some(lost)}"
        yield Finding(check="units at work", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="units at work", status=OK, found=f"{len(running)}, each with a living process")


def stale(request: DoctorRequest) -> Iterator[Finding]:
    """List results that are stale: their method or data have changed since."""
    usage, seen = read_usage(request.store), set[UnitKey]()
    reasons: Counter[tuple[str, str]] = Counter()
    for document in usage.studies.values():
        for unit in units_of(document) - seen:
            seen.add(unit)
            record = request.store.record(*unit) or {}
            reason = why_stale(record, document)
            reasons.update([] if reason is None else [(str(record.get("method") or "pretraining"), reason)])
    for (method, reason), count in sorted(reasons.items()):
        words, remedy = f"{count} results of {method}: {reason}", _stale_remedy(request.store, usage, method)
        yield Finding(check="stale results", status=WARN, found=words, remedy=remedy)
    if not reasons:
        yield Finding(check="stale results", status=OK, found="none")


def _stale_remedy(store: Store, usage: StoreUsage, method: str) -> str:
    commands = sorted(
        study_command(document.get("command"), store.root)
        for document in usage.studies.values()
        if method in ((document.get("spec") or {}).get("methods") or ()) or method == "pretraining"
    )
    known = [f"`{line}`" for line in commands if line]
    return f"{some(known, 1)}; it makes them again" if known else ""


def tracking_database(request: DoctorRequest) -> Iterator[Finding]:
    """Check that MLflow's database in the store is undamaged."""
    path = request.store.root / "mlflow.db"
    if not path.is_file():
        yield Finding(check="MLflow database", status=OK, found="there is none in the store")
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            (verdict,) = connection.execute("pragma integrity_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        found = f"cannot be checked: {error}"
        yield Finding(
            check="MLflow database", status=WARN, found=found, remedy="check again when no process writes to it"
        )
        return
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict == "ok":
        yield Finding(check="MLflow database", status=OK, found=f"intact, {size_in_words(path.stat().st_size)}")
    else:
        remedy = f"`{shell('mv', path, f'{path}.damaged')}`; the next run of each study writes it again"
        yield Finding(check="MLflow database", status=PROBLEM, found=f"damaged: {first_line(verdict)}", remedy=remedy)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("studies", studies),
    ("records", records),
    ("leases", leases),
    ("units at work", orphans),
    ("stale results", stale),
    ("MLflow database", tracking_database),
)
