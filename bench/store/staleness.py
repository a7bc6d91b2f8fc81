"""Staleness of results: whether method, model, data, cost counter or the harness's part changed since one was made."""

from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError
from bench.plugins.registry import source_hash
from bench.plugins.source_hash import VERSION
from bench.store.outcomes import RESULTS

COUNTER_VERSION = 2
"""Version of the cost counter, stored with every result; raised whenever `bench.costs.counter` counts differently."""

PROTOCOL_VERSION = 4
"""Version of the harness's part in searches and runs: cost term, calibration, repair, fine-tuning. It is stored with
every result of a method, and raised whenever this part gives other numbers for the same specification."""

_NAMES = {
    "data_checksum": "data",
    "protocol": "protocol of the harness",
    "cost_counter": "cost counter",
    "method_source": "method source",
    "model_source": "model source",
}
"""Parts of a fingerprint in words."""


def fingerprint(method: str | None, data_checksum: str | None, model: str | None = None) -> dict[str, Any]:
    """Compute what a result depends on besides its specification, from the present sources and data.

    Args:
        method: Name of the method, or `/path/file.py:Class`; `None` for a unit without a method.
        data_checksum: Checksum of data and split; `None` when it is not known.
        model: Name of the model; `None` when it is not known.

    Raises:
        BenchError: The method or the model is not installed here.
    """
    current: dict[str, Any] = {"cost_counter": COUNTER_VERSION}
    if data_checksum is not None:
        current["data_checksum"] = data_checksum
    if method is not None:
        current["method_source"] = source_hash("methods", method)
        current["protocol"] = PROTOCOL_VERSION
    if model is not None:
        current["model_source"] = source_hash("models", model)
    return current


def changes(record: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Describe what changed since a result was made; `None` when nothing did.

    Args:
        record: Record of the result.
        current: Present fingerprint; parts that it lacks are not compared.
    """
    stored = record.get("fingerprint") or {}
    differing = [key for key, value in current.items() if stored.get(key) != value]
    by_earlier_rule = [key for key in differing if _is_of_earlier_rule(key, stored.get(key))]
    changed = [_NAMES[key] for key in differing if key not in by_earlier_rule]
    reasons = [f"{' and '.join(changed)} changed"] if changed else []
    if by_earlier_rule:
        sources = " and ".join(_NAMES[key].removesuffix(" source") for key in by_earlier_rule)
        reasons.append(f"made by an earlier version of the harness, which identified {sources} sources differently")
    return "; ".join(reasons) or None


def _is_of_earlier_rule(key: str, stored: object) -> bool:
    """Return whether a stored hash was computed by another rule, so that the source itself may be unchanged."""
    return key.endswith("_source") and isinstance(stored, str) and not stored.startswith(f"{VERSION}:")


class Staleness:
    """Explains why results of a study are stale. What identifies a method and a model is computed once.

    Answers use records and the study's document only, so they need no data. The data count as they were when the study
    was last run, and so does a method's file that no longer exists.

    Args:
        study: Document of the study.
    """

    def __init__(self, study: Mapping[str, Any]) -> None:
        self._study = study
        self._known: dict[tuple[Any, Any], dict[str, Any] | BenchError] = {}

    def why(self, record: Mapping[str, Any]) -> str | None:
        """Explain why a result is stale; `None` when it is valid, or when the record is not that of a result.

        Args:
            record: Record of a unit of the study.
        """
        if record.get("status") not in RESULTS:
            return None
        key = (record.get("method"), record.get("model"))
        if key not in self._known:
            self._known[key] = self._fingerprint(record)
        current = self._known[key]
        # An error says that the method or the model is not installed here.
        return str(current).partition(":")[0] if isinstance(current, BenchError) else changes(record, current)

    def _fingerprint(self, record: Mapping[str, Any]) -> dict[str, Any] | BenchError:
        try:
            return _fingerprint_now(record, self._study)
        except BenchError as error:
            return error


def why_stale(record: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    """Explain why one result is stale, as `Staleness` does.

    Args:
        record: Record of the unit.
        study: Document of a study that the unit belongs to.
    """
    return Staleness(study).why(record)


def _fingerprint_now(record: Mapping[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    method = record.get("method")
    file = (_table(study, "spec").get("method_files") or {}).get(str(method))
    current = fingerprint(None if file else method, study.get("data_checksum"), record.get("model"))
    if file:
        try:
            current["method_source"] = source_hash("methods", file)
        except BenchError:
            last = _table(study, "method_sources").get(str(method))
            current |= {"method_source": last} if last else {}
    return current


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
