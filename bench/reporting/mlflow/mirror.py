"""The update of one study's MLflow runs from its run folders, which sends only what MLflow does not have.

A mirror remembers what it sent, so that the cost of an update depends on what is new and not on what has finished.
Another process may write too. Therefore MLflow is asked for a run before the run is created, and a thorough update
forgets everything that was remembered and compares all of it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from bench.reporting.mlflow.entries import NOTE, Entry, GroupKey, curve_points
from bench.reporting.mlflow.folders import StudyFolders, UnitSummary
from bench.spec.schema import canonical_hash
from bench.store.files import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ID, FINISHED_TAG, STORE, PARENT = "bench.id", "bench.finished", "bench.store", "mlflow.parentRunId"
TABLES, POLICIES = "bench.tables", "bench.policies"

_PAGE = 200
"""Runs in one answer of a search; an answer with all runs could exceed the time limit of a request."""
_BATCH_METRICS, _BATCH_PARAMS = 900, 100
"""Metrics and params in one call; MLflow's servers refuse more than 1000 of both together."""
_KEY_CHARS, _PARAM_CHARS, _TAG_CHARS = 250, 500, 5000
"""Lengths that every MLflow server since version 2 accepts."""
_MAX_FAILURES = 3
"""Number of failed entries after which an update gives up; fewer do not keep the others from being sent."""


@dataclass
class Counts:
    """The effect of an update on a study's MLflow runs.

    Attributes:
        added, updated, unchanged, removed: Numbers of runs.
        complete: Whether MLflow has everything; if not, time ran out.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class _StoredRun:
    """An MLflow run as MLflow has it."""

    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A connection to MLflow.

    Attributes:
        client: MLflow's client.
        probe: Function that raises an error when MLflow cannot be reached.
        glance: Function that does the same before every write if a write would take long to fail, and nothing else.
    """

    client: "MlflowClient"
    probe: Callable[[], None]
    glance: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """Artifacts of a parent run that are sent only when they have changed.

    Attributes:
        tag: Tag that holds the stamp of the artifacts that were sent last.
        stamp: Text that changes when the artifacts do.
        texts: Function that makes the artifacts, by name.
    """

    tag: str
    stamp: str
    texts: Callable[[], Mapping[str, str]]


class Mirror:
    """A study's folders and MLflow runs, as far as this process knows them. After an error it must not be used again.

    Args:
        store: Store with the folders.
        study: Document of the study.
        experiment: Id of MLflow's experiment.
        owner: Value of the tag `bench.store`, which marks the store's runs among those of other stores.
        private: Whether only this store writes to the MLflow, so that every run is the store's.
    """

    def __init__(self, store: Store, study: Mapping[str, Any], experiment: str, owner: str, *, private: bool) -> None:
        self.study, self.experiment, self.owner = study, experiment, owner
        self.folders = StudyFolders(store, study)
        self._private = private
        self._known: dict[str, list[_StoredRun]] = {}
        self._members: dict[GroupKey, list[UnitSummary]] = {}
        self._is_filled = False

    def update(self, connection: Connection, *, thorough: bool, deadline: float = math.inf) -> Counts:
        """Send what MLflow does not have, and remove what the study no longer has.

        Args:
            connection: Connection to MLflow.
            thorough: Whether to compare everything and send tables and mean policies too, instead of relying on what
                is remembered.
            deadline: Time of the monotonic clock after which the rest waits for the next update.
        """
        fresh = thorough or not self._is_filled
        if fresh:
            self._fill(connection.client)
        units = self.folders.scan()
        groups: dict[GroupKey, list[UnitSummary]] = {}
        for unit in units:
            groups.setdefault(unit.group, []).append(unit)
        update = _Update(self, connection, deadline, fresh)
        self._write_parents(update, groups, thorough=thorough)
        shown = [unit for unit in units if unit.stamp is not None]
        for unit in shown:
            update.attempt(unit.identity, partial(update.child, unit))
        wanted = {"/".join(group) for group in groups} | {unit.identity for unit in shown}
        for identity in self._known.keys() - wanted:
            runs = self._known.pop(identity)
            update.counts.removed += len(runs)
            update.delete(runs)
        if thorough and units:
            update.attempt("description", partial(self._describe, connection.client))
        update.finish()
        return update.counts

    def remove(self, client: "MlflowClient") -> None:
        """Delete the store's runs of this study."""
        self._is_filled = False
        for run in list(self._search(client)):
            client.delete_run(run.run_id)

    def known(self, identity: str) -> list[_StoredRun]:
        """Return the MLflow runs of an entry, as remembered."""
        return self._known.get(identity, [])

    def ask(self, client: "MlflowClient", identity: str) -> list[_StoredRun]:
        """Ask MLflow for the runs of an entry, because another process may have written them."""
        self._known[identity] = list(self._search(client, f"tags.`{ID}` = '{identity}'"))
        return self._known[identity]

    def remember(self, identity: str, run: _StoredRun) -> None:
        """Remember the MLflow run of an entry."""
        self._known[identity] = [run]

    def parent_of(self, unit: UnitSummary) -> str | None:
        """Return the MLflow run of a unit's group; `None` when it is not up to date."""
        runs = self.known("/".join(unit.group))
        return runs[0].run_id if runs and unit.group in self._members else None

    def _fill(self, client: "MlflowClient") -> None:
        """Forget everything and read what MLflow has."""
        self.folders.forget()
        self._known.clear()
        self._members.clear()
        for run in self._search(client):
            self._known.setdefault(run.tags[ID], []).append(run)
        self._is_filled = True

    def _write_parents(
        self, update: "_Update", groups: Mapping[GroupKey, list[UnitSummary]], *, thorough: bool
    ) -> None:
        """Update the figures of the groups in which a unit has changed."""
        changed = {key: members for key, members in groups.items() if self._members.get(key) != members}
        update.counts.unchanged += len(groups) - len(changed)
        tables = [self._tables()] if thorough else []
        every = len(changed) == len(groups)
        for entry in self.folders.parents(changed, compared=thorough and every) if changed else ():
            key = entry.group
            attachments = [*tables, self._policies(key, changed[key])] if thorough else []
            if update.attempt(entry.identity, partial(update.parent, entry, attachments)):
                self._members[key] = changed[key]

    def _describe(self, client: "MlflowClient") -> bool:
        """Write the verdict and the table of the study into the experiment's description."""
        client.set_experiment_tag(self.experiment, NOTE, self.folders.note())
        return True

    def _tables(self) -> Attachment:
        """Return the study's tables, the same for all of its parents."""
        texts = self.folders.tables()
        return Attachment(tag=TABLES, stamp=canonical_hash(texts), texts=lambda: texts)

    def _policies(self, key: GroupKey, members: Iterable[UnitSummary]) -> Attachment:
        """Return the mean policy of a group; its files are read only when it has changed."""
        runs = [unit for unit in members if unit.counts]
        stamp = canonical_hash([run.stamp for run in runs])
        return Attachment(tag=POLICIES, stamp=stamp, texts=partial(self.folders.policies, key, runs))

    def _search(self, client: "MlflowClient", text: str = "") -> Iterator[_StoredRun]:
        """Yield this store's runs; other stores may share a server's experiment."""
        token = None
        while True:
            page = client.search_runs([self.experiment], text, max_results=_PAGE, page_token=token)
            yield from (_stored_run(run) for run in page if self._is_ours(run.data.tags))
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
        """Bring one entry up to date, unless time has run out; return whether it is up to date."""
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
        """Write the figures of a group into its run, which is made when missing, and the attachments that changed."""
        stored = self._look_up(entry.identity)
        if stored is None:
            return False
        # MLflow's params can never change, so a study that now has another recipe needs a new run.
        wanted = _cut(entry.params, _PARAM_CHARS)
        fitting = [run for run in stored if {**wanted, **run.params} == wanted][:1]
        self.delete(run for run in stored if run not in fitting)
        current = fitting[0] if fitting else None
        marks = {attachment.tag: attachment.stamp for attachment in attachments}
        # A run without its stamp is half-written, so its tags do not prove that the attachments are there.
        sent = current.tags if current is not None and FINISHED_TAG in current.tags else {}
        changed = [attachment for attachment in attachments if sent.get(attachment.tag) != attachment.stamp]
        if current is not None and current.tags.get(FINISHED_TAG) == entry.stamp and not changed:
            self._mirror.remember(entry.identity, current)
            self.counts.unchanged += 1
            return True
        texts = {name: text for attachment in changed for name, text in attachment.texts().items()}
        if current is None:
            self._create(entry, marks, texts)
        else:
            # A figure that no longer exists, e.g. the deviation of a single run, must not keep its old value.
            gone = dict.fromkeys(current.metrics - entry.metrics.keys(), math.nan)
            self._fill(current.run_id, entry, {**gone, **entry.metrics}, marks, texts)
        self._count(stored)
        return True

    def child(self, unit: UnitSummary) -> bool:
        """Write a run or trial once; replace it when its record has changed or it is half-written."""
        parent = self._mirror.parent_of(unit)
        if parent is None:  # it could not be written; the next update makes both
            return False
        wanted = {FINISHED_TAG: unit.stamp, PARENT: parent}
        known = self._mirror.known(unit.identity)
        if len(known) == 1 and wanted.items() <= known[0].tags.items():
            self.counts.unchanged += 1
            return True
        stored = self._look_up(unit.identity)
        entry = None if stored is None else self._mirror.folders.child(unit)
        if entry is None or stored is None:
            return False
        current = [run for run in stored if wanted.items() <= run.tags.items()][:1]
        self.delete(run for run in stored if run not in current)
        if current:
            self._mirror.remember(unit.identity, current[0])
        else:
            self._create(entry, {PARENT: parent}, entry.texts)
        self._count(stored)
        return True

    def delete(self, runs: Iterable[_StoredRun]) -> None:
        """Delete MLflow runs."""
        for run in runs:
            self._client.delete_run(run.run_id)

    def _look_up(self, identity: str) -> list[_StoredRun] | None:
        """Return the MLflow runs of an entry before it is written; `None` when time has run out."""
        if time.monotonic() > self._deadline:
            self.counts.complete = False
            return None
        self._connection.glance()
        known = self._mirror.known(identity)
        return known if known or self._fresh else self._mirror.ask(self._client, identity)

    def _count(self, stored: list[_StoredRun]) -> None:
        self.counts.updated += bool(stored)
        self.counts.added += not stored

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
        # The stamp comes last: a run without it is half-written and is replaced the next time.
        stamps = _cut({**entry.tags, **tags, FINISHED_TAG: entry.stamp}, _TAG_CHARS)
        for chunk in _chunks(stamps.items(), _BATCH_PARAMS):
            self._client.log_batch(run, tags=[RunTag(key, value) for key, value in chunk])
        self._mirror.remember(
            entry.identity, _StoredRun(run_id=run, tags=stamps, params=params, metrics=frozenset(entry.metrics))
        )


def _stored_run(run: "Run") -> _StoredRun:
    data = run.data
    return _StoredRun(run_id=str(run.info.run_id), tags=data.tags, params=data.params, metrics=frozenset(data.metrics))


def _cut(fields: Mapping[str, str], length: int) -> dict[str, str]:
    """Cut names and values to the lengths that MLflow accepts."""
    return {key[:_KEY_CHARS]: value[:length] for key, value in fields.items()}


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
