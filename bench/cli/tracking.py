"""The commands on MLflow: `bench sync` brings it up to date, `bench ui` opens its user interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import WholeNumber, store_option, tracking_option
from bench.errors import BenchError, first_line
from bench.outputs.commands import command
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from bench.reporting.mlflow.tracker import Tracker
    from bench.store.files import Store

_LOCK_SECONDS = 60.0


@click.command()
@click.argument("study", required=False)
@click.option(
    "--port", type=WholeNumber(1, 65535), default=5000, show_default=True, help="Port that the server listens on."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the server listens on.")
@click.option("--public", is_flag=True, help="Let other machines in, with --host. MLflow has no login.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@store_option
@tracking_option
def ui(
    study: str | None,
    port: int,
    host: str,
    public: bool,
    open_browser: bool,
    store_dir: Path,
    tracking_uri: str | None,
) -> None:
    """Open a study in MLflow's user interface.

    Only this machine can reach it, unless --public is given. Without STUDY, the latest study is opened.
    """
    import signal

    from bench.reporting.mlflow.server import NO_LOGIN
    from bench.reporting.mlflow.ui import launch_ui
    from bench.store.files import Store

    for number in (signal.SIGTERM, signal.SIGHUP):  # otherwise the server would outlive its terminal
        signal.signal(number, signal.default_int_handler)
    store = Store(store_dir)
    name = str(store.load_study(study)["name"])
    with launch_ui(store.root, tracking_uri, name, host, port, public=public, open_browser=open_browser) as view:
        if public:
            say(f"warning: {NO_LOGIN}", err=True)
        say(view.url)
        for contents, url in view.views.items():
            say(f"{contents}: {url}")
        say("press Ctrl-C to stop")
        view.wait()


@click.command()
@click.argument("study", required=False)
@click.option("--all", "every", is_flag=True, help="Synchronise all studies of the store.")
@click.option("--rebuild", is_flag=True, help="Delete this store's runs of the study from MLflow first.")
@store_option
@tracking_option
def sync(study: str | None, every: bool, rebuild: bool, store_dir: Path, tracking_uri: str | None) -> int:
    """Bring MLflow up to date with a study's run folders. Without STUDY, the latest study is synchronised.

    MLflow's data is a server, a database, or the store's own SQLite file, which is made again when it was deleted. Only
    what MLflow does not have is sent.
    """
    from bench.reporting.mlflow.tracker import Tracker
    from bench.store.files import Store

    if every and study is not None:
        raise BenchError(f"{study} and --all exclude each other; give one of them")
    store = Store(store_dir)
    documents, damaged = _documents(store, study, every=every)
    tracker = Tracker(tracking_uri, store.root, patient=True)
    with _views_lock(store):
        for document in documents:
            say(_synchronise(tracker, store, document, rebuild=rebuild))
    for line in damaged:
        say(f"bench: {line}", err=True)
    return 1 if damaged else 0


def _documents(store: Store, study: str | None, *, every: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the documents of the studies to synchronise, and one line on each study that cannot be read."""
    if not every:
        return [store.load_study(study)], []
    documents, damaged = [], []
    for name in store.studies() or [str(store.load_study(None)["name"])]:
        try:
            documents.append(store.load_study(name))
        except BenchError as error:
            damaged.append(str(error))
    return documents, damaged


def _synchronise(tracker: Tracker, store: Store, document: dict[str, Any], *, rebuild: bool) -> str:
    """Bring one study up to date, and return one line on what was sent."""
    from bench.store.urls import without_password, without_secrets

    uri = without_password(tracker.uri)
    try:
        counts = tracker.sync(store, document, rebuild=rebuild)
    except Exception as error:
        reason = without_secrets(first_line(error))
        raise BenchError(
            f"cannot bring MLflow at {uri} up to date: {reason}; when it can be reached again, type "
            f"`{command('sync', document['name'], *tracker.option, store=store.root)}`, which sends the rest"
        ) from error
    removed = f", {counts.removed} removed" if counts.removed else ""
    figures = f"{counts.added} runs added, {counts.updated} updated, {counts.unchanged} unchanged{removed}"
    return f"{document['name']}: {figures} at {uri}"


@contextmanager
def _views_lock(store: Store) -> Iterator[None]:
    """Hold the lock under which the views are written; a read-only store has no lock.

    Raises:
        BenchError: Another command holds the lock.
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
