"""Publish studies in `docs/results`: `.venv/bin/python docs/make_results.py STORE STUDY…`.

Each study gets a folder with its numbers, specification, versions, and all tables and figures of its reports. The
comparison of the study replaces the table between `<!-- results: STUDY -->` and `<!-- end -->` in the page of
`docs/results` that has this comment. The answers to the questions in `docs/results/questions.toml` replace the table
after `<!-- answers: STUDY -->`. So no number in these tables is typed by hand.
"""

import json
import math
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.plugins.registry import load
from bench.reporting import wording
from bench.reporting.report import (
    DEFAULT_REPORT,
    Column,
    Document,
    Figure,
    Section,
    Table,
    make_document,
    write_tables,
)
from bench.results.differences import write_numbers
from bench.results.fairness import flags
from bench.results.groups import RunGroup, difference, p_to_correct, run_groups
from bench.results.statistics import PairedDifference, holm
from bench.results.tables import StudyResults, section
from bench.store.files import Store, read_stored_specification

_DOCS = Path(__file__).resolve().parent
_RESULTS = _DOCS / "results"
RESULT_PAGES = sorted(_RESULTS.glob("*.md"))
"""Pages with tables of published studies."""
_WIDTH = 200


def main(arguments: list[str]) -> None:
    """Publish the studies that the command line names.

    Args:
        arguments: Folder of a store, and names of studies in it.
    """
    import drawings  # beside this script; other modules import only functions from here

    store = Store(Path(arguments[0]))
    for name in arguments[1:]:
        results = StudyResults(store, store.load_study(name))
        folder = _RESULTS / name
        shutil.rmtree(folder, ignore_errors=True)  # else a table that exists no longer would stay, e.g. of failures
        folder.mkdir(parents=True)
        drawings.note(publish(results, folder), drawings.of_reports())
        fill_in(f"results: {name}", markdown(_tables_of(make_document(results, [DEFAULT_REPORT]))))
        fill_in(f"answers: {name}", markdown(answers(results)))
        print(f"{folder.name}: {len(list(folder.iterdir()))} files")  # noqa: T201


def publish(results: StudyResults, folder: Path) -> dict[Path, str]:
    """Write a study's numbers, specification, versions, tables (Markdown) and figures (SVG).

    Returns:
        Name of the report that drew each figure.
    """
    write_numbers(results)
    for name in ("runs.csv", "results.csv"):
        shutil.copyfile(results.store.study(results.name) / name, folder / name)
    study = results.store.load_study(results.name)
    (folder / "specification.json").write_text(json.dumps(study["spec"], indent=1) + "\n")
    (folder / "versions.json").write_text(json.dumps(_versions(results), indent=1) + "\n")
    document = make_document(results)
    specification = _specification(study)
    for path in write_tables(document, folder):
        if path.suffix == ".md":
            path.write_text(_anywhere(path.read_text(), results.store, specification))
        else:
            path.unlink()
    return _draw(document, folder)


def _tables_of(document: Document) -> Document:
    """Leave out the figures, whose files lie in another folder than the page."""
    sections = (
        replace(section, parts=tuple(part for part in section.parts if isinstance(part, Table)))
        for section in document.sections
    )
    return replace(document, sections=tuple(sections))


def _specification(study: Mapping[str, Any]) -> str:
    """Return the published specification that the study was run from, by the name in its command."""
    stated = re.search(r"--spec[ =](\S+)", str(study["command"]))
    if stated is None:
        raise SystemExit(f"the study was run as '{study['command']}'; run it with --spec docs/results/NAME.toml")
    return f"docs/results/{Path(stated[1]).name}"


def _anywhere(text: str, store: Store, specification: str) -> str:
    """Replace the paths of the machine that ran the study, so that commands work on any machine.

    The command of a row names the specification of its run in the store, which is not published. The specification of
    the study makes the same run; in an ablation it makes the other variants too.
    """
    text = re.sub(r"--spec \S+", f"--spec {specification}", text)
    text = text.replace(str(store.root), "STORE")
    return re.sub(r"--data-dir \S+", "--data-dir DIR", text)


def _versions(results: StudyResults) -> dict[str, object]:
    """Return versions and hardware as the first finished run recorded them, and the checksum of its checkpoint."""
    done = results.runs[results.runs["status"] == "done"]
    run = str(done["id"].iloc[0])
    record = results.store.record("runs", run) or {}
    made = read_stored_specification(results.store.unit("runs", run)) or {}
    checkpoint = section(section(made, "depends_on"), "task").get("checkpoint")
    stated = {key: record.get(key) for key in ("versions", "hardware", "fingerprint")}
    return stated | ({} if checkpoint is None else {"checkpoint": checkpoint})


def _draw(document: Document, folder: Path) -> dict[Path, str]:
    """Draw all figures; return the report that each is from."""
    from bench.reporting.charts import save

    drawn = {}
    for part in document.sections:
        for figure in part.parts:
            if isinstance(figure, Figure):
                drawn[save((figure.still or figure.draw)(), folder / f"{figure.name}.svg")] = part.name
    return drawn


def answers(results: StudyResults) -> Document:
    """Answer the questions about a study, budget by budget, by paired differences; p is corrected over all of them.

    Groups that were not on equal terms are not tested.
    """
    asked = tomllib.loads((_RESULTS / "questions.toml").read_text()).get(results.name, [])
    groups = {(group.method, group.budget): group for group in run_groups(results, flags=flags(results))}
    asked_at = [(entry, budget) for entry in asked for budget in results.study["spec"]["budgets"]]
    sides = [[groups.get((method, budget)) for method in entry["pair"]] for entry, budget in asked_at]
    flagged = [any(side is not None and side.flags for side in both) for both in sides]
    pairs = [_pair(both) for both in sides]
    corrected = holm([math.nan if marked else p_to_correct(pair) for pair, marked in zip(pairs, flagged, strict=True)])
    answered = zip(asked_at, pairs, corrected, flagged, strict=True)
    rows = [_row(entry, budget, pair, p, marked=marked) for (entry, budget), pair, p, marked in answered]
    titles = ("Question", "A", "B", "Budget", "n", "A − B", "95 % interval", "p", "Smallest seen")
    columns = tuple(Column(title=title, align="left" if index < 4 else "right") for index, title in enumerate(titles))
    table = Table(name="answers", title=f"{results.name}: questions", columns=columns, rows=tuple(rows))
    return Document(study=results.name, sections=(Section(name="answers", title="", parts=(table,)),))


def _pair(sides: Sequence[RunGroup | None]) -> PairedDifference | None:
    first, second = sides
    return None if first is None or second is None else difference(first.top1, second.top1)


def _row(
    entry: dict[str, Any], budget: str, pair: PairedDifference | None, p: float, *, marked: bool
) -> tuple[str, ...]:
    """Return a question with its answer in points of Top-1; the last cell is the smallest difference that n detects."""
    key = (entry["question"], *entry["pair"], budget)
    if pair is None:
        return (*key, "0", "", "", "", "")
    delta, ends, tested = wording.difference(pair, p)
    return (*key, str(pair.n), delta, ends, wording.FLAGGED if marked else tested, wording.number(pair.detectable))


def markdown(document: Document) -> str:
    """Return a document as Markdown."""
    text: str = load("forms", "markdown").render(document, _WIDTH)
    return text


def fill_in(name: str, table: str, pages: Iterable[Path] = RESULT_PAGES) -> None:
    """Replace a table in the page that has it.

    Args:
        name: Name in the comment before the table.
        table: New table, as Markdown.
        pages: Pages that may have the table.
    """
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    for page in pages:
        page.write_text(block.sub(lambda match: f"{match[1]}\n{table.strip()}\n\n{match[2]}", page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
