"""What makes a result stale: another source of its method or model, other data, another way of counting costs."""

from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError
from bench.plugins.registry import source_hash
from bench.plugins.source_hash import VERSION

COUNTER_VERSION = 1
"""Of the cost counter, stored with every result; raised whenever `bench.costs.counter` counts differently."""

_CHANGES = {
    "data_checksum": "data",
    "cost_counter": "cost counter",
    "method_source": "method source",
    "model_source": "model source",
}


def fingerprint(method: str | None, data_checksum: str | None, model: str | None = None) -> dict[str, Any]:
    """What a result depends on, as it is now.

    Args:
        method: Name of the method if one is involved, or its place if it is in a file.
        data_checksum: Of data and split; left out when it is not known.
        model: Name of the model; left out when it is not known.
    """
    found: dict[str, Any] = {"cost_counter": COUNTER_VERSION}
    if data_checksum is not None:
        found["data_checksum"] = data_checksum
    if method is not None:
        found["method_source"] = source_hash("methods", method)
    if model is not None:
        found["model_source"] = source_hash("models", model)
    return found


def staleness(record: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """What changed since a result was made, in words; `None` when nothing did.

    Args:
        record: Of the result.
        current: The fingerprint, as far as it is known now.
    """
    then = record.get("fingerprint") or {}
    changed = [_name(key, then.get(key)) for key, value in current.items() if then.get(key) != value]
    return f"{' and '.join(changed)} changed" if changed else None


def _name(key: str, then: object) -> str:
    """Name what changed; a source that an earlier release hashed may itself be the same."""
    by_older_rule = key.endswith("_source") and isinstance(then, str) and not then.startswith(f"{VERSION}:")
    return f"rule for identifying {_CHANGES[key]}s" if by_older_rule else _CHANGES[key]


def outdated(record: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    """What changed since a result was made, by what its own record and the document of its study say.

    A method's file that is gone counts as it was when the study was last run.

    Raises:
        BenchError: Its method or model is not installed here.
    """
    method = record.get("method")
    place = (_table(study, "spec").get("method_files") or {}).get(str(method))
    found = fingerprint(None if place else method, study.get("data_checksum"), record.get("model"))
    if place:
        try:
            found["method_source"] = source_hash("methods", place)
        except BenchError:
            found |= {"method_source": then} if (then := _table(study, "method_sources").get(str(method))) else {}
    return staleness(record, found)


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
