"""Brings one study's MLflow runs up to date with its run folders, sending only what MLflow does not have.

What was sent is remembered, so that an update costs as much as what is new, however much has finished. Another
process may write too: before a run is made, MLflow is asked whether it is there; a thorough update forgets all
that was remembered and compares everything.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from bench.reporting.mlflow.entries import Cell, Entry, Folders, Item, cell, curve_points
from bench.spec.schema import canonical_hash
from bench.store.files import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ID, FINISHED_TAG, STORE, PARENT = "bench.id", "bench.finished", "bench.store", "mlflow.parentRunId"
TABLES, POLICIES = "bench.tables", "bench.policies"

_PAGE = 200
"""Runs in one answer of a search: an answer with all of them may take longer than a request may."""
_BATCH_METRICS, _BATCH_PARAMS = 900, 100
"""In one call; MLflow's servers refuse more than 1000 of both together."""
_KEY_CHARS, _PARAM_CHARS, _TAG_CHARS = 250, 500, 5000
"""What every MLflow server since version 2 accepts."""
_MAX_FAILURES = 3
"""Entries that cannot be written before an update gives up: one that MLflow refuses does not keep out the others."""


@dataclass
class Counts:
    """What an update did with a study's MLflow runs.

    Attributes:
        added, updated, unchanged, removed: Runs.
        complete: Whether MLflow has everything; otherwise time ran out.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """An MLflow run as it is there."""

    run: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The way to MLflow.

    Attributes:
        client: MLflow's.
        probe: Raises when MLflow cannot be reached.
        glance: The same before every write, where writing itself would take long to fail; otherwise does nothing.
    """

    client: "MlflowClient"
    probe: Callable[[], None]
    glance: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Artifacts of a parent that are sent again only when they have changed.

    Attributes:
        tag: The tag that says what was sent last.
        stamp: Its value; changes when the artifacts do.
        texts: Makes the artifacts, by name.
    """

    tag: str
    stamp: str
    texts: Callable[[], Mapping[str, str]]


class Mirror:
    """A study's folders and MLflow runs, as far as this process knows them. After an error it is of no use any more.

    Args:
        store: Where the folders are.
        study: The study's document.
        experiment: The id of MLflow's experiment.
        owner: Marks the store's runs among those of others, as the tag `bench.store.files`.
        private: Whether nobody else writes to this MLflow, so that every run is the store's.
    """

    def __init__(self, store: Store, study: Mapping[str, Any], experiment: str, owner: str, *, private: bool) -> None:
        self.study, self.experiment, self.owner = study, experiment, owner
        self.folders = Folders(store, study)
        self._private = private
        self._known: dict[str, list[_Sent]] = {}
        self._members: dict[Cell, list[Item]] = {}
        self._is_filled = False

    def update(self, connection: Connection, *, thorough: bool, deadline: float = math.inf) -> Counts:
        """Send what MLflow does not have, and remove what the study no longer has.

        Args:
            connection: The way to MLflow.
            thorough: Compare everything, and send tables and mean policies too, instead of going by what is
                remembered.
            deadline: On the monotonic clock; what is left then waits for the next update.
        """
        fresh = thorough or not self._is_filled
        if fresh:
            self._fill(connection.client)
        items = self.folders.look()
        cells: dict[Cell, list[Item]] = {}
        for item in items:
            cells.setdefault(item.cell, []).append(item)
        update = _Update(self, connection, deadline, fresh)
        self._write_parents(update, cells, thorough=thorough)
        for item in items:
            if item.stamp is not None:
                update.attempt(item.identity, partial(update.child, item))
        wanted = {"/".join(cell) for cell in cells} | {item.identity for item in items if item.stamp is not None}
        for identity in self._known.keys() - wanted:
            runs = self._known.pop(identity)
            update.counts.removed += len(runs)
            update.delete(runs)
        update.finish()
        return update.counts

    def remove(self, client: "MlflowClient") -> None:
        """Delete the store's runs of this study."""
        self._is_filled = False
        for sent in list(self._search(client)):
            client.delete_run(sent.run)

    def known(self, identity: str) -> list[_Sent]:
        """What is remembered of an entry's runs."""
        return self._known.get(identity, [])

    def ask(self, client: "MlflowClient", identity: str) -> list[_Sent]:
        """What MLflow has of an entry: another process may have written it."""
        self._known[identity] = list(self._search(client, f"tags.`{ID}` = '{identity}'"))
        return self._known[identity]

    def remember(self, identity: str, sent: _Sent) -> None:
        """Keep what MLflow has of an entry now."""
        self._known[identity] = [sent]

    def parent_of(self, item: Item) -> str | None:
        """The MLflow run of a unit's cell, when it is up to date."""
        found = self.known("/".join(item.cell))
        return found[0].run if found and item.cell in self._members else None

    def _fill(self, client: "MlflowClient") -> None:
        """Forget everything and look at what MLflow has."""
        self.folders.forget()
        self._known.clear()
        self._members.clear()
        for sent in self._search(client):
            self._known.setdefault(sent.tags[ID], []).append(sent)
        self._is_filled = True

    def _write_parents(self, update: "_Update", cells: Mapping[Cell, list[Item]], *, thorough: bool) -> None:
        """Update the aggregates of those cells in which a unit has changed."""
        changed = {key: members for key, members in cells.items() if self._members.get(key) != members}
        update.counts.unchanged += len(cells) - len(changed)
        tables = [self._tables()] if thorough else []
        for entry in self.folders.parents(changed) if changed else ():
            key = cell(entry)
            attachments = [*tables, self._policies(key, changed[key])] if thorough else []
            if update.attempt(entry.identity, partial(update.parent, entry, attachments)):
                self._members[key] = changed[key]

    def _tables(self) -> Attachment:
        """The study's tables, the same for all of its parents."""
        texts = self.folders.tables()
        return Attachment(tag=TABLES, stamp=canonical_hash(texts), texts=lambda: texts)

    def _policies(self, key: Cell, members: Iterable[Item]) -> Attachment:
        """The mean policy of a cell, whose files are only read when it has changed."""
        items = [item for item in members if item.counts]
        stamp = canonical_hash([item.stamp for item in items])
        return Attachment(tag=POLICIES, stamp=stamp, texts=partial(self.folders.policies, key, items))

    def _search(self, client: "MlflowClient", text: str = "") -> Iterator[_Sent]:
        """This store's runs; others may share a server's experiment."""
        token = None
        while True:
            page = client.search_runs([self.experiment], text, max_results=_PAGE, page_token=token)
            yield from (_sent(run) for run in page if self._is_ours(run.data.tags))
            token = page.token
            if not token:
                return

    def _is_ours(self, tags: Mapping[str, str]) -> bool:
        return ID in tags and (self._private or tags.get(STORE) == self.owner)


class _Update:
    """One update of a mirror."""

    def __init__(self, mirror: Mirror, connection: Connection, deadline: float, fresh: bool) -> None:
        self.counts = Counts()
        self._mirror, self._connection, self._client = mirror, connection, connection.client
        self._deadline, self._fresh = deadline, fresh
        self._failures: list[Exception] = []

    def attempt(self, identity: str, write: Callable[[], bool]) -> bool:
        """Bring one entry up to date, unless time has run out; returns whether it is."""
        try:
            return write()
        except Exception as error:
            error.add_note(f"MLflow run {identity}")
            self._failures.append(error)
            if len(self._failures) >= _MAX_FAILURES:
                raise
            self._connection.probe()
            return False

    def finish(self) -> None:
        """Raise the first failure, if there was any."""
        if self._failures:
            raise self._failures[0]

    def parent(self, entry: Entry, attachments: Sequence[Attachment]) -> bool:
        """Write an aggregate into its run, made when missing, and of its attachments what has changed."""
        found = self._look_up(entry.identity)
        if found is None:
            return False
        # MLflow's params can never change: a study that now has another recipe needs a new run.
        wanted = _cut(entry.params, _PARAM_CHARS)
        fitting = [sent for sent in found if {**wanted, **sent.params} == wanted][:1]
        self.delete(sent for sent in found if sent not in fitting)
        marks = {attachment.tag: attachment.stamp for attachment in attachments}
        # A run without its stamp was left half-written: nothing that its tags say need be there.
        there = fitting[0].tags if fitting and FINISHED_TAG in fitting[0].tags else {}
        changed = [attachment for attachment in attachments if there.get(attachment.tag) != attachment.stamp]
        texts = {name: text for attachment in changed for name, text in attachment.texts().items()}
        if not fitting:
            self._create(entry, marks, texts)
            self._count(found)
            return True
        (sent,) = fitting
        if sent.tags.get(FINISHED_TAG) == entry.stamp and not changed:
            self._mirror.remember(entry.identity, sent)
            self.counts.unchanged += 1
            return True
        # A figure that there was and is no more, e.g. the deviation of one run, must not stay as it was.
        gone = dict.fromkeys(sent.metrics - entry.metrics.keys(), math.nan)
        self._fill(sent.run, entry, {**gone, **entry.metrics}, marks, texts)
        self._count(found)
        return True

    def child(self, item: Item) -> bool:
        """Write a run or trial once; replace it when its record has changed or it was left half-written."""
        parent = self._mirror.parent_of(item)
        if parent is None:  # it could not be written; the next update makes both
            return False
        wanted = {FINISHED_TAG: item.stamp, PARENT: parent}
        found: list[_Sent] | None = self._mirror.known(item.identity)
        if found and len(found) == 1 and wanted.items() <= found[0].tags.items():
            self.counts.unchanged += 1
            return True
        found = self._look_up(item.identity)
        entry = None if found is None else self._mirror.folders.child(item)
        if entry is None or found is None:
            return False
        current = [sent for sent in found if wanted.items() <= sent.tags.items()][:1]
        self.delete(sent for sent in found if sent not in current)
        if current:
            self._mirror.remember(item.identity, current[0])
        else:
            self._create(entry, {PARENT: parent}, entry.texts)
        self._count(found)
        return True

    def delete(self, runs: Iterable[_Sent]) -> None:
        """Delete MLflow runs."""
        for sent in runs:
            self._client.delete_run(sent.run)

    def _look_up(self, identity: str) -> list[_Sent] | None:
        """The runs for an entry that is about to be written; `None` when there is no time left for it."""
        if time.monotonic() > self._deadline:
            self.counts.complete = False
            return None
        self._connection.glance()
        known = self._mirror.known(identity)
        return known if known or self._fresh else self._mirror.ask(self._client, identity)

    def _count(self, found: list[_Sent]) -> None:
        self.counts.updated += bool(found)
        self.counts.added += not found

    def _create(self, entry: Entry, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        marks = {ID: entry.identity, STORE: self._mirror.owner, **entry.tags, **tags}
        made = self._client.create_run(
            self._mirror.experiment, entry.started, _cut(marks, _TAG_CHARS), entry.name[:_KEY_CHARS]
        )
        self._fill(str(made.info.run_id), entry, entry.metrics, marks, texts)

    def _fill(
        self,
        run: str,
        entry: Entry,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        texts: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        moment = entry.ended or int(time.time() * 1000)
        points = [(key, value, 0) for key, value in metrics.items()] + curve_points(entry.curves)
        figures = [Metric(key[:_KEY_CHARS], value, moment, step) for key, value, step in points]
        params = _cut(entry.params, _PARAM_CHARS)
        settings = [Param(key, value) for key, value in params.items()]
        for some, others in zip_longest(_chunks(figures, _BATCH_METRICS), _chunks(settings, _BATCH_PARAMS)):
            self._client.log_batch(run, metrics=some or (), params=others or ())
        for path in entry.files:
            self._client.log_artifact(run, str(path))
        for name, text in texts.items():
            self._client.log_text(run, text, name)
        self._client.set_terminated(run, entry.status, entry.ended)
        # The stamp comes last: a run without it was left half-written and is replaced the next time.
        stamps = _cut({**entry.tags, **tags, FINISHED_TAG: entry.stamp}, _TAG_CHARS)
        for chunk in _chunks(stamps.items(), _BATCH_PARAMS):
            self._client.log_batch(run, tags=[RunTag(key, value) for key, value in chunk])
        self._mirror.remember(
            entry.identity, _Sent(run=run, tags=stamps, params=params, metrics=frozenset(entry.metrics))
        )


def _sent(run: "Run") -> _Sent:
    data = run.data
    return _Sent(run=str(run.info.run_id), tags=data.tags, params=data.params, metrics=frozenset(data.metrics))


def _cut(fields: Mapping[str, str], length: int) -> dict[str, str]:
    """Names and values no longer than MLflow takes."""
    return {key[:_KEY_CHARS]: value[:length] for key, value in fields.items()}


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
