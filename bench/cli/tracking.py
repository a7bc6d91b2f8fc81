"""The command `bench sync`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import store_option, tracking_option
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.reporting.mlflow.tracker import Tracker
    from bench.store.files import Store

_LOCK_SECONDS = 60.0


@click.command()
@click.argument("study", required=False)
@click.option("--all", "every", is_flag=True, help="All studies of the store.")
@click.option("--rebuild", is_flag=True, help="Delete this store's runs of the study from MLflow first.")
@store_option
@tracking_option
def sync(study: str | None, every: bool, rebuild: bool, store_dir: Path, tracking_uri: str | None) -> int:
    """Bring MLflow up to date with a study's run folders, at any later time.

    Into the store's own SQLite file, a new one if it was deleted, or to a server. What MLflow has is not sent again.
    """
    from bench.reporting.mlflow.tracker import Tracker
    from bench.store.files import Store

    if every and study is not None:
        raise BenchError(f"{study} and --all exclude each other; give one of them")
    store = Store(store_dir)
    documents, damaged = _documents(store, study, every=every)
    tracker = Tracker(tracking_uri, store.root, patient=True)
    with _turn(store):
        for document in documents:
            click.echo(_synced(tracker, store, document, rebuild=rebuild))
    for line in damaged:
        click.echo(f"bench: {line}", err=True)
    return 1 if damaged else 0


def _documents(store: Store, study: str | None, *, every: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The studies asked for, and what is wrong with those that cannot be read."""
    if not every:
        return [store.load_study(study)], []
    documents, damaged = [], []
    for name in store.studies() or [str(store.load_study(None)["name"])]:
        try:
            documents.append(store.load_study(name))
        except BenchError as error:
            damaged.append(str(error))
    return documents, damaged


def _synced(tracker: Tracker, store: Store, document: dict[str, Any], *, rebuild: bool) -> str:
    """Bring one study up to date; returns what was done in one line."""
    from bench.errors import first_line
    from bench.store.urls import without_password

    place = without_password(tracker.uri)
    try:
        counts = tracker.sync(store, document, rebuild=rebuild)
    except Exception as error:
        raise BenchError(
            f"cannot bring MLflow at {place} up to date: {first_line(error)}; when it is there again, type "
            f"`bench sync {document['name']} --store {store.root} --tracking-uri {place}`, which goes on from here"
        ) from error
    removed = f", {counts.removed} removed" if counts.removed else ""
    figures = f"{counts.added} runs added, {counts.updated} updated, {counts.unchanged} unchanged{removed}"
    return f"{document['name']}: {figures} at {place}"


@contextmanager
def _turn(store: Store) -> Iterator[None]:
    """The lock under which the views are written; a store that can only be read has none.

    Raises:
        BenchError: Another command holds it.
    """
    from filelock import FileLock, Timeout

    from bench.reporting.mlflow.tracker import VIEWS_LOCK

    lock = FileLock(store.root / VIEWS_LOCK, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise BenchError(f"another command is writing to MLflow from the store '{store.root}'; try again") from None
    except OSError:
        lock = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
