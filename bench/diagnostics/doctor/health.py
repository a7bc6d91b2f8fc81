"""The checks of `bench doctor` that look at whether all that a store holds is intact."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, Check, DoctorRequest, Finding, some
from bench.errors import first_line
from bench.store.contents import UnitKey, folders, size_in_words, units, units_of
from bench.store.files import Store, UnitKind, read_json
from bench.store.outcomes import RESULTS
from bench.store.staleness import why_stale
from bench.store.usage import StoreUsage, read_usage


def studies(visit: DoctorRequest) -> Iterator[Finding]:
    """Whether the document of every study is as it was written."""
    claims = read_usage(visit.store)
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


def records(visit: DoctorRequest) -> Iterator[Finding]:
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


def leases(visit: DoctorRequest) -> Iterator[Finding]:
    """Whether every lease has a living holder."""
    claims = read_usage(visit.store)
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


def orphans(visit: DoctorRequest) -> Iterator[Finding]:
    """Whether somebody works on every unit that says so."""
    store, held = visit.store, read_usage(visit.store).names
    running = [unit for unit in all_units(store) if (store.record(*unit) or {}).get("status") == "running"]
    lost = [f"{kind}/{identity}" for kind, identity in running if f"{kind}-{identity}" not in held]
    if lost:
        remedy = "run the study's `bench run` command again, which goes on with them"
        found = f"{len(lost)} say that they are worked on and are not: {some(lost)}"
        yield Finding(check="units at work", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="units at work", status=OK, found=f"{len(running)}, each with a living process")


def stale(visit: DoctorRequest) -> Iterator[Finding]:
    """Which results were made with something that has changed since."""
    claims, seen = read_usage(visit.store), set[UnitKey]()
    found: Counter[tuple[str, str]] = Counter()
    for document in claims.studies.values():
        for unit in units_of(document) - seen:
            seen.add(unit)
            record = visit.store.record(*unit) or {}
            reason = why_stale(record, document)
            found.update([] if reason is None else [(str(record.get("method") or "pretraining"), reason)])
    for (method, reason), count in sorted(found.items()):
        words, remedy = f"{count} results of {method}: {reason}", _remedy_of_stale(claims, method)
        yield Finding(check="stale results", status=WARN, found=words, remedy=remedy)
    if not found:
        yield Finding(check="stale results", status=OK, found="none")


def _remedy_of_stale(claims: StoreUsage, method: str) -> str:
    commands = sorted(
        str(document.get("command"))
        for document in claims.studies.values()
        if method in ((document.get("spec") or {}).get("methods") or ()) or method == "pretraining"
    )
    return f"{some(commands, 1)}, which makes them anew" if commands else ""


def tracking_database(visit: DoctorRequest) -> Iterator[Finding]:
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
        yield Finding(check="MLflow database", status=OK, found=f"intact, {size_in_words(path.stat().st_size)}")
    else:
        remedy = f"mv '{path}' '{path}.damaged'; the next `bench run` of each study writes it anew"
        yield Finding(check="MLflow database", status=PROBLEM, found=f"damaged: {first_line(verdict)}", remedy=remedy)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("studies", studies),
    ("records", records),
    ("leases", leases),
    ("units at work", orphans),
    ("stale results", stale),
    ("MLflow database", tracking_database),
)
