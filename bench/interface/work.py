"""The work of a study while it runs: how many epochs are done, and how long the rest takes at the pace so far."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.planning.units import RunUnit, TuningUnit, Unit, finetuning_epochs, kind_of, planned_epochs, title
from bench.store.files import UnitKind
from bench.store.leases import LeaseView

_SHARE_TO_TRUST = 0.2
"""Share of a running unit that must have been seen before its pace counts."""
_EPOCHS_TO_TRUST = 0.5
"""Share of the epochs left whose pace must be known by units of the same method before a time is stated."""
_ORDER: tuple[UnitKind, ...] = ("pretrained", "tuning", "runs")

_Key = tuple[UnitKind, str, str]
"""Kind of a unit, its model, and its method or variant: such units take equally long."""


@dataclass
class _Group:
    """Units that take equally long.

    Attributes:
        epochs: Epochs of each unit; grows if a unit turns out to have more than planned.
        units: Number of units.
        ended: Number of those that have ended or were there already.
        seconds, timed: Seconds that units took while they were watched, and the epochs that they did meanwhile.
    """

    epochs: float
    units: int = 0
    ended: int = 0
    seconds: float = 0.0
    timed: float = 0.0


@dataclass
class _Running:
    """A running unit.

    Attributes:
        key: Group of the unit.
        since: Time at which it was first seen.
        share: Share of the unit that is done.
        before: Share that was done before it was first seen; `None` until the unit states its progress.
    """

    key: _Key
    since: float
    share: float = 0.0
    before: float | None = None

    def seen(self, now: float, epochs: float) -> tuple[float, float]:
        """Return the seconds that the unit was watched, and the epochs that it did meanwhile."""
        return now - self.since, (self.share - (self.before or 0.0)) * epochs


class Work:
    """Counts the epochs of a study's units, and estimates the time left.

    Args:
        phases: Units of each phase, in the order of work.
        stored: Identities of the units that have a result already.
    """

    def __init__(self, phases: Iterable[Sequence[Unit]], stored: Iterable[str] = ()) -> None:
        self._units = {_name(unit): unit for units in phases for unit in units}
        self._ended = {name for name, unit in self._units.items() if unit.identity in set(stored)}
        self._groups: dict[_Key, _Group] = {}
        for name, unit in self._units.items():
            group = self._groups.setdefault(_key(unit), _Group(epochs=planned_epochs(unit)))
            group.units += 1
            group.ended += name in self._ended
        self._known: dict[str, _Running] = {}
        self._running: dict[str, _Running] = {}
        self._most_at_once = 1

    @property
    def stored(self) -> int:
        """Number of units that have ended; before any unit is worked on, that of those with a stored result."""
        return len(self._ended)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self._units)

    @property
    def title_width(self) -> int:
        """Number of characters of the longest title."""
        return max((len(title(unit)) for unit in self._units.values()), default=0)

    @property
    def epochs(self) -> int:
        """Number of epochs of all units."""
        return round(sum(group.units * group.epochs for group in self._groups.values()))

    @property
    def done(self) -> int:
        """Number of epochs that are done, with those of running units and trials."""
        ended = sum(group.ended * group.epochs for group in self._groups.values())
        return int(ended + sum(unit.share * self._groups[unit.key].epochs for unit in self._running.values()) + 1e-6)

    def look(self, views: Sequence[LeaseView]) -> None:
        """Note how far the running units are.

        Args:
            views: Leases of all units of the study, those of trials included.
        """
        trials = {view.tuning: view for view in views if view.tuning}
        now, running = time.monotonic(), {}
        for view in views:
            unit = self._units.get(view.name)
            if unit is None or view.name in self._ended:
                continue
            state = self._known.setdefault(view.name, _Running(key=_key(unit), since=now))
            self._move(state, unit, view, trials.get(unit.identity))
            running[view.name] = state
        self._running = running
        self._most_at_once = max(self._most_at_once, len(running))

    def _move(self, state: _Running, unit: Unit, view: LeaseView, trial: LeaseView | None) -> None:
        """Note how far one unit is."""
        group = self._groups[state.key]
        if isinstance(unit, RunUnit) and view.progress.get("phase") == "finetune":
            # A search that trains weights in a part of its updates only is fine-tuned longer than planned.
            longer = float(view.progress.get("epochs", 0)) - finetuning_epochs(unit)
            group.epochs = max(group.epochs, planned_epochs(unit) + longer)
        done = _epochs_done(unit, group.epochs, view.progress, {} if trial is None else trial.progress)
        state.share = max(state.share, min(1.0, done / group.epochs if group.epochs else 1.0))
        if state.before is None and done:
            state.before = max(0.0, state.share - 1 / max(1.0, group.epochs))

    def ended(self, unit: Unit, *, finished: bool) -> None:
        """Note that a unit has ended.

        Args:
            unit: The unit.
            finished: Whether it did all its work, so that its time says how long others take.
        """
        name = _name(unit)
        if name in self._ended or name not in self._units:
            return
        self._ended.add(name)
        self._running.pop(name, None)
        group, state = self._groups[_key(unit)], self._known.pop(name, None)
        group.ended += 1
        if state is not None and finished:
            state.share = 1.0
            seconds, epochs = state.seen(time.monotonic(), group.epochs)
            group.seconds += seconds
            group.timed += epochs

    def seconds_left(self) -> float | None:
        """Estimate how long the rest takes; `None` while the pace of more than half of it is unknown.

        Units of one group take equally long, phases follow one another, and as many units run at once as have been
        seen to do so.
        """
        now = time.monotonic()
        paces = {key: pace for key in self._groups if (pace := self._pace(key, now)) is not None}
        seconds, epochs = (sum(values) for values in zip(*paces.values(), strict=True)) if paces else (0.0, 0.0)
        if not epochs or not seconds:
            return None
        parts = [(key, *self._rest(key), _same_method(paces, key)) for key in self._groups]
        left = sum(rest for _, rest, _, _ in parts)
        if sum(rest for _, rest, _, pace in parts if pace is not None) < _EPOCHS_TO_TRUST * left:
            return None
        total = 0.0
        for kind in _ORDER:
            mine = [
                (rest * pace, longest * pace)
                for key, rest, longest, own in parts
                if key[0] == kind
                for pace in [seconds / epochs if own is None else own]
            ]
            in_turn = sum(rest for rest, _ in mine) / self._most_at_once
            total += max([in_turn, *(longest for _, longest in mine)])
        return total

    def _pace(self, key: _Key, now: float) -> tuple[float, float] | None:
        """Return seconds and epochs of what a group has done; `None` if that is too little."""
        group = self._groups[key]
        seen = [state for state in self._running.values() if state.key == key]
        trusted = [state for state in seen if state.share - (state.before or 0.0) >= _SHARE_TO_TRUST]
        times = [(group.seconds, group.timed), *(state.seen(now, group.epochs) for state in trusted)]
        seconds, epochs = (sum(values) for values in zip(*times, strict=True))
        return (seconds, epochs) if epochs > 0 else None

    def _rest(self, key: _Key) -> tuple[float, float]:
        """Return the epochs that a group has left, and the most that one of its units has left."""
        group = self._groups[key]
        running = [(1 - state.share) * group.epochs for state in self._running.values() if state.key == key]
        waiting = group.units - group.ended - len(running)
        return waiting * group.epochs + sum(running), max([group.epochs if waiting else 0.0, *running])


def _same_method(paces: dict[_Key, tuple[float, float]], key: _Key) -> float | None:
    """Return the seconds per epoch of a group, or else those of the method's other kind of unit."""
    kind, *method = key
    other: dict[UnitKind, UnitKind] = {"tuning": "runs", "runs": "tuning"}
    for near in (kind, other.get(kind, kind)):
        pace = paces.get((near, method[0], method[1]))
        if pace is not None:
            return pace[0] / pace[1]
    return None


def _key(unit: Unit) -> _Key:
    label = unit.label if isinstance(unit, TuningUnit | RunUnit) else unit.variant
    return kind_of(unit), unit.spec.task.model, label


def _name(unit: Unit) -> str:
    """Return the name of a unit's lease."""
    return f"{kind_of(unit)}-{unit.identity}"


def _epochs_done(unit: Unit, epochs: float, progress: Mapping[str, Any], trial: Mapping[str, Any]) -> float:
    """Return how many of a unit's epochs are done by its progress and that of its current trial."""
    if isinstance(unit, TuningUnit):
        search, finetune = unit.spec.search.epochs, unit.spec.tuning.finetune_epochs
        earlier = max(0.0, float(progress.get("epoch", 1)) - 1) * (search + finetune)
        return earlier + _in_phases(trial, search, finetune)
    if isinstance(unit, RunUnit):
        search = unit.spec.search.epochs if unit.search_trains else 0
        return _in_phases(progress, search, epochs - search)
    return float(progress.get("epoch", 0))


def _in_phases(progress: Mapping[str, Any], search: float, finetune: float) -> float:
    """Return how many of the epochs of a search and of a fine-tuning are done.

    A search may report more epochs than planned, such as the episodes of an agent, or have stages that count from 1.
    """
    phase, epoch, epochs = progress.get("phase"), float(progress.get("epoch", 0)), float(progress.get("epochs", 0))
    if phase == "finetune":
        return search + finetune * min(1.0, epoch / max(1.0, epochs))
    if phase == "search":
        counted = max(epoch, float(progress.get("done", 0)))
        return search * min(1.0, counted / max(1.0, epochs, search))
    return 0.0
