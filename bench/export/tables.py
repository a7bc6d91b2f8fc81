"""Tables of what was exported: how each form agrees with the harness, and measured times."""

from typing import Any

from bench.export.export import Exports
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
            _equal(entry),
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


def _equal(entry: dict[str, Any]) -> str:
    words = f"{entry['equal']}/{entry['images']}"
    if entry["traced"]:
        words += f", {entry['traced']} near ties"
    return f"{words}, BROKEN" if entry["broken"] else words


def _network_bytes(document: Any, form: str) -> int:
    return int(next(iter(document["forms"][form]["files"].values())))


def time_table(exports: Exports) -> Table:
    """Return one row for each network, form, engine and number of images."""
    rows = [
        (
            str(network.document["run"])[:8],
            entry["engine"],
            str(entry["batch"]),
            entry["form"],
            f"{entry['milliseconds']:.3f}",
            f"{entry['ratio'][1]:.2f}",
            f"{entry['ratio'][0]:.2f}–{entry['ratio'][2]:.2f}",
        )
        for network in exports.networks
        for entry in network.document["measured"]
    ]
    titles = ("run", "engine", "images", "form", "ms", "× float", "quartiles")
    return Table(
        name="measured",
        title="Measured times on one thread",
        columns=tuple(Column(title=title) for title in titles),
        rows=tuple(rows),
        notes=("× float: median ratio to the float network in the same engine and round; below 1 is faster.",),
    )
