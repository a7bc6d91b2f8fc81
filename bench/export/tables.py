"""Tables of what was exported: how each form agrees with the harness, and measured times."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.export.export import Exports
from bench.export.measurement import MeasuredTime
from bench.export.verification import equal_predictions
from bench.reporting.report import Column, Table

_AGREEMENT = ("run", "method", "budget", "form", "engine", "KB", "equal", "Top-1 %", "recorded", "codes differing")


def agreement_table(exports: Exports) -> Table:
    """Return one row for each network, form and engine."""
    rows = [
        (
            str(document["run"])[:8],
            str(document["method"]),
            str(document["budget"] or ""),
            entry["form"],
            f"{entry['engine']} {entry['version']}",
            f"{_network_bytes(document, entry['form']) / 1000:.1f}",
            equal_predictions(entry),
            f"{entry['top1']:.2f}",
            f"{document['recorded_top1']:.2f}",
            f"{entry['codes_differing']:,} of {entry['codes']:,}",
        )
        for document in (network.document for network in exports.networks)
        for form in document["forms"].values()
        for entry in form["agreements"]
    ]
    notes = [
        "equal: images of the test split with the harness's prediction; near ties: others, in which float32 rounds a "
        "number half-way between two codes another way."
    ]
    limits = {
        limit for network in exports.networks for form in network.document["forms"].values() for limit in form["limits"]
    }
    return Table(
        name="exported",
        title="Exported networks",
        columns=tuple(Column(title=title) for title in _AGREEMENT),
        rows=tuple(rows),
        notes=(*notes, *sorted(limits)),
    )


def _network_bytes(document: Any, form: str) -> int:
    return int(next(iter(document["forms"][form]["files"].values())))


def time_table(exports: Exports) -> Table:
    """Return one row for each network, form, engine and number of images."""
    documents = [network.document for network in exports.networks]
    rows = [(str(document["run"])[:8], *_time_cells(entry)) for document in documents for entry in document["measured"]]
    return _time_table("Measured times on one thread", ("run",), rows)


def policy_time_table(measured: Sequence[MeasuredTime]) -> Table:
    """Return one row for each form, engine and number of images of one policy's network."""
    rows = [_time_cells(asdict(entry)) for entry in measured]
    return _time_table("Measured times on one thread, with random weights", (), rows)


def _time_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    low, middle, high = entry["ratio"]
    numbers = (f"{entry['milliseconds']:.3f}", f"{middle:.2f}", f"{low:.2f}–{high:.2f}")
    return (entry["engine"], str(entry["batch"]), entry["form"], *numbers)


def _time_table(title: str, first: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    titles = (*first, "engine", "images", "form", "ms", "× float", "quartiles")
    return Table(
        name="measured",
        title=title,
        columns=tuple(Column(title=title) for title in titles),
        rows=tuple(rows),
        notes=("× float: median ratio to the float network in the same engine and round; below 1 is faster.",),
    )
