"""The conditions of a study: versions, hardware, specification, data."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bench.api import Column, Report, StudyResults, Table
from bench.results.tables import section

_PARTS = ("versions", "hardware")


class Environment(Report):
    """The versions, hardware, specification and data of a study."""

    summary = "versions and hardware of the runs, the specification, the data's checksum"
    title = "Environment and specification"
    rank = 80
    folded = True

    def build(self, results: StudyResults) -> list[Table]:
        """Make both tables; there is always a specification."""
        return [_environment(results), _specification(results)]


def _environment(results: StudyResults) -> Table:
    records = [results.record("runs", str(identity)) for identity in results.study.get("runs") or ()]
    counts = Counter(condition for record in records if record is not None for condition in _conditions(record))
    order = {name: index for index, name in enumerate(dict.fromkeys(name for name, _ in counts))}
    return Table(
        name="environment",
        title="Versions, hardware and data of the runs",
        columns=(Column(title="Condition", align="left"), Column(title="Value", align="left"), Column(title="Runs")),
        rows=tuple(
            (*condition, str(counts[condition])) for condition in sorted(counts, key=lambda entry: order[entry[0]])
        ),
        notes=(
            f"Data now: checksum {results.study.get('data_checksum') or 'unknown'}",
            f"Study created {results.study.get('created') or 'at an unknown time'}: "
            f"{results.study.get('command') or 'its command is not known'}",
        ),
    )


def _conditions(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in _PARTS:
        yield from ((str(name), str(value)) for name, value in section(record, part).items())
    fingerprint = section(record, "fingerprint")
    for key, name in (("data_checksum", "data and split, SHA-256"), ("cost_counter", "cost counter, version")):
        if fingerprint.get(key) is not None:
            yield name, str(fingerprint[key])


def _specification(results: StudyResults) -> Table:
    return Table(
        name="specification",
        title="Specification",
        columns=(Column(title="Key", align="left", code=True), Column(title="Value", align="left")),
        rows=tuple(_flat(results.spec)),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield keys as `--set` reads them, with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            yield f"{prefix}{key}", "" if shown is None else str(shown)
