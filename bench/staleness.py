"""What makes a result stale: another source of its method or model, other data, another way of counting costs."""

from collections.abc import Mapping
from typing import Any

from bench.plugins import source_hash

COUNTER_VERSION = 1
"""Of the cost counter, stored with every result; raised whenever `bench.costs` counts differently."""

_CHANGES = {
    "data_checksum": "data",
    "cost_counter": "cost counter",
    "method_source": "method source",
    "model_source": "model source",
}


def fingerprint(method: str | None, data_checksum: str | None, model: str | None = None) -> dict[str, Any]:
    """What a result depends on, as it is now.

    Args:
        method: Name of the method, if one is involved.
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
    changed = [_CHANGES[key] for key, value in current.items() if then.get(key) != value]
    return f"{' and '.join(changed)} changed" if changed else None


def outdated(record: Mapping[str, Any], data_checksum: str | None) -> str | None:
    """What changed since a result was made, by what its own record says of it.

    Raises:
        BenchError: Its method or model is not installed here.
    """
    return staleness(record, fingerprint(record.get("method"), data_checksum, record.get("model")))
