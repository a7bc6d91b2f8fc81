"""Publish what was exported of a study: `.venv/bin/python docs/make_deployment.py STORE STUDY`.

The tables, sentences and the figure of `docs/deployment.md` are made from the study's exports, which
`bench export STUDY --format packed,onnx,onnx-qdq --measure` writes. No number on the page is typed by hand.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import fill
from typing import Any

import drawings
from make_results import fill_in, markdown

import reports.deployment
from bench.reporting import charts
from bench.reporting.charts import save
from bench.reporting.report import Column, Document, Figure, Section, Table
from bench.results.tables import StudyResults
from bench.store.exports import DOCUMENT, export_folder
from bench.store.files import Store, read_checked
from reports.deployment import Deployment, measured_rows

_DOCS = Path(__file__).resolve().parent
PAGE = _DOCS / "deployment.md"
_WIDTH = 100
EXPORTED = ("onnx", "onnx-qdq")
Rows = Sequence[Mapping[str, Any]]


def main(arguments: list[str], page: Path = PAGE) -> None:
    """Publish the exports of a study.

    Args:
        arguments: Folder of a store, and name of a study in it.
        page: Page that is completed; the figure goes into the folder `figures` beside it.
    """
    folder, name = arguments
    store = Store(Path(folder))
    results = StudyResults(store, store.load_study(name))
    rows = measured_rows(results)
    if not rows:
        raise SystemExit(f"measure first: bench export {name} --format packed,onnx,onnx-qdq --measure --store {folder}")
    sizes = next(part for part in Deployment().build(results) if isinstance(part, Table))
    sentences = {"machine": machine(results), "message": message(rows)}
    contents = {"sizes": as_markdown(sizes), **{key: fill(text, _WIDTH) for key, text in sentences.items()}}
    for key, text in {**contents, "times": as_markdown(times(rows))}.items():
        fill_in(f"deployment: {key}", text, [page])
    figures = [part for part in Deployment().build(results) if isinstance(part, Figure)]
    drawn = [save(figure.draw(), page.parent / "figures" / f"{figure.name}.svg") for figure in figures]
    if page == PAGE:
        drawings.note(dict.fromkeys(drawn, "deployment"), fingerprints())


def fingerprints() -> dict[str, str]:
    """Return the fingerprint of what draws the figure."""
    return {"deployment": drawings.of_sources(Path(str(reports.deployment.__file__)), Path(str(charts.__file__)))}


def as_markdown(table: Table) -> str:
    """Return a table as Markdown."""
    return markdown(Document(study="", sections=(Section(name=table.name, title="", parts=(table,)),)))


def machine(results: StudyResults) -> str:
    """Say on which machine and with which runtimes the study was exported."""
    runs = (str(run) for run in results.runs["id"])
    documents = (read_checked(export_folder(results.store, run) / DOCUMENT) for run in runs)
    document = next(document for document in documents if document is not None)
    about = document["machine"]
    engines = sorted({f"{time['engine'].partition(',')[0]} {time['version']}" for time in document["measured"]})
    return (
        f"Measured on one thread of an {about['processor']} ({', '.join(about['instructions'])}), with "
        f"{' and '.join(engines)}."
    )


def message(rows: Rows) -> str:
    """Say what counted operations promise at uniform 4 bit, and what is measured."""
    uniform = [row for row in rows if (row["method"], row["budget"]) == ("fixed", "4bit") and row["form"] in EXPORTED]
    best = min(uniform, key=lambda row: row["ratio"])
    worst = max(uniform, key=lambda row: row["ratio"])
    return (
        f"**Uniform 4 bit counts {1 / best['bops']:.0f} times fewer bit operations than the float network. Its fastest "
        f"form, {where(best)}, is {speed(best['ratio'])} than the float network, and its slowest, {where(worst)}, "
        f"{speed(worst['ratio'])}.**"
    )


def where(row: Mapping[str, Any]) -> str:
    """Name form, engine and number of images of a measured time."""
    return f"`{row['form']}` in {row['engine'].split()[0]} with {row['batch']} image{'s' if row['batch'] > 1 else ''}"


def speed(ratio: float) -> str:
    """Return a ratio of times in words."""
    return f"{1 / ratio:.1f} times faster" if ratio < 1 else f"{ratio:.1f} times slower"


def times(rows: Rows) -> Table:
    """Return one row for each method and budget, with the ratio of times of each form, engine and number of images."""
    shown = [row for row in rows if row["form"] in EXPORTED]
    places = list(dict.fromkeys((row["engine"].split()[0], row["form"], row["batch"]) for row in shown))
    groups: dict[tuple[str, str], dict[tuple[str, str, int], float]] = {}
    bops = {(row["method"], row["budget"]): row["bops"] for row in shown}
    for row in shown:
        place = row["engine"].split()[0], row["form"], row["batch"]
        groups.setdefault((row["method"], row["budget"]), {})[place] = row["ratio"]
    return Table(
        name="times",
        title="Measured time over that of the float network",
        columns=(
            *(Column(title=title, align="left") for title in ("Method", "Budget")),
            Column(title="BOPs ×", note="BOPs ×: counted bit operations over those of the float network"),
            *(Column(title=f"{engine} {form} {batch}") for engine, form, batch in places),
        ),
        rows=tuple(
            tuple(chain(group, [f"{bops[group]:.4f}"], (f"{found[place]:.2f}" for place in places)))
            for group, found in groups.items()
        ),
        notes=("The other columns: measured time over that of the float network, in this engine, form and batch",),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
