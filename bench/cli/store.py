"""The commands on a store: `bench clean`, `bench archive`, `bench restore` and `bench doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import FILE, data_option, store_option
from bench.outputs.commands import command
from bench.outputs.terminal import Tone, say, say_item

if TYPE_CHECKING:
    from bench.diagnostics.doctor.finding import Finding
    from bench.store.cleaning.survey import Item
    from bench.store.files import Store

_VIEW_LOCK_SECONDS = 60.0


@click.command()
@click.argument("study", required=False)
@click.option("--yes", is_flag=True, help="Remove the files; without this option they are only listed.")
@store_option
def clean(study: str | None, yes: bool, store_dir: Path) -> int:
    """Remove files that no study needs, or a whole study.

    With STUDY, that study and the units that only it refers to are removed. Files of units and studies that a process
    is running are kept.
    """
    from bench.errors import EXIT_SOME_FAILED
    from bench.store.cleaning.cleanup import clean as remove
    from bench.store.cleaning.survey import survey
    from bench.store.contents import size_of
    from bench.store.files import Store

    store = Store(store_dir)
    failures: Iterable[str] = ()
    if yes:
        done = remove(store, study)
        sized, notes, failures = done.removed, done.notes, done.failures
    else:
        removable = survey(store, study)
        sized, notes = [(item, size_of(item.path)) for item in removable.items], removable.notes
    _print_items(sized, "removed" if yes else "removable")
    _print_usage(store)
    for line in (*notes, *failures):
        say(f"note: {line}")
    if sized and not yes:
        words = ("clean", *([] if study is None else [study]), "--yes")
        say(f"nothing was removed; to remove these files: {command(*words, store=store.root)}")
    return EXIT_SOME_FAILED if failures else 0


def _print_items(sized: Iterable[tuple[Item, int]], heading: str) -> None:
    from bench.store.cleaning.survey import CATEGORIES
    from bench.store.contents import size_in_words

    items = list(sized)
    if not items:
        say("nothing to remove")
    for category in CATEGORIES:
        sizes = [size for item, size in items if item.category == category]
        if sizes:
            say(f"{heading}  {category:<40} {len(sizes):>6} {size_in_words(sum(sizes)):>10}")
    if items:
        say(f"{heading}  {'in all':<40} {len(items):>6} {size_in_words(sum(size for _, size in items)):>10}")


def _print_usage(store: Store) -> None:
    from bench.store.contents import size_by_kind, size_in_words

    used = size_by_kind(store)
    kinds = ", ".join(f"{kind} {size_in_words(size)}" for kind, size in used.items() if size)
    say(f"the store holds {size_in_words(sum(used.values()))}{': ' if kinds else ''}{kinds}")


def shortcomings(store: Store, document: Mapping[str, Any]) -> list[str]:
    """List what an archive of a study lacks, one line each."""
    from bench.results.tables import StudyResults
    from bench.store.cleaning.usage import read_usage
    from bench.store.outcomes import RESULTS

    runs = Counter(StudyResults(store, document).runs["status"])
    without = {status: count for status, count in runs.items() if status not in RESULTS}
    lines = []
    if without:
        counts = ", ".join(f"{count} {status}" for status, count in without.items())
        lines.append(f"{sum(without.values())} of {sum(runs.values())} runs have no valid result: {counts}")
    session = read_usage(store).sessions.get(str(document["name"]))
    if session is not None:
        lines.append(f"{session.holder} is running the study; the archive has only what was finished so far")
    return lines


@click.command()
@click.argument("study")
@click.argument("file", type=FILE, metavar="FILE.tar.gz")
@store_option
def archive(study: str, file: Path, store_dir: Path) -> None:
    """Write a study with all its units into one file.

    The file has the study's pretrainings, tunings and runs, and `bench restore` reads it.
    """
    from bench.store import archive as archives
    from bench.store.contents import size_in_words
    from bench.store.files import Store

    store = Store(store_dir)
    warnings = shortcomings(store, store.load_study(study))
    written = archives.archive(store, study, file)
    for line in warnings:
        say(f"warning: {line}")
    if written.left_out:
        say(f"warning: {written.left_out} files in the study's folder are not of the harness and were left out")
    say(f"{file}: study {study}, {written.units} units, {written.files} files, {size_in_words(written.size)}")
    say(f"to restore it: {command('restore', file)}")


@click.command()
@click.argument("file", type=FILE)
@click.option("--name", default=None, metavar="NEW", help="Other name for the restored study.")
@store_option
def restore(file: Path, name: str | None, store_dir: Path) -> None:
    """Restore an archived study into a store.

    Units that the store already has are kept.
    """
    from bench.store import archive as archives
    from bench.store.files import Store

    store = Store(store_dir)
    restored = archives.restore(store, file, name)
    say(f"study {restored.study}: {restored.added} units added, {restored.kept} kept as they were")
    _write_tables(store, store.load_study(restored.study))
    say(f"its table: {command('report', restored.study, store=store.root)}")


def _write_tables(store: Store, document: Mapping[str, Any]) -> None:
    """Update the study's tables, because the archive's tables may not agree with the units that were kept."""
    from filelock import FileLock

    from bench.reporting.report import write_views
    from bench.results.tables import StudyResults

    with FileLock(store.root / ".views.lock", timeout=_VIEW_LOCK_SECONDS):
        write_views(StudyResults(store, document))


@click.command()
@click.option("--preset", default=None, help="Preset whose needs are checked too.")
@click.option("--study", default=None, help="Study of the store whose needs are checked too.")
@click.option("--thorough", is_flag=True, help="Read all data sets and hash all files of the store.")
@click.option("--long", is_flag=True, help="Also say what was found where nothing is wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
@store_option
def doctor(
    preset: str | None,
    study: str | None,
    thorough: bool,
    long: bool,
    as_json: bool,
    data_dir: Path | None,
    store_dir: Path,
) -> int:
    """Check the machine, the installation, the data and the store.

    A remedy is suggested for each problem. What is in order is named at the end, and described with --long.
    """
    import json

    from bench.diagnostics.doctor.doctor import examine
    from bench.diagnostics.doctor.finding import OK, PROBLEM, DoctorRequest
    from bench.errors import EXIT_SOME_FAILED
    from bench.store.files import Store

    request = DoctorRequest(store=Store(store_dir), data_dir=data_dir, preset=preset, study=study, thorough=thorough)
    findings = []
    for finding in examine(request):
        findings.append(finding)
        if not as_json and (long or finding.status != OK):
            _print_finding(finding)
    problems = sum(finding.status == PROBLEM for finding in findings)
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=1))
        return EXIT_SOME_FAILED if problems else 0
    passed = [finding.check for finding in findings if finding.status == OK]
    if passed and not long:
        say_item(f"{OK:<{_STATE_WIDTH}}", f"{len(passed)} checks: {', '.join(dict.fromkeys(passed))}", tone="good")
    words = "no problems" if not problems else f"{problems} problem{'s' if problems > 1 else ''}"
    say(words, tone="bad" if problems else "")
    return EXIT_SOME_FAILED if problems else 0


_STATE_WIDTH = 9


def _print_finding(finding: Finding) -> None:
    from bench.diagnostics.doctor.finding import OK, PROBLEM

    tones: dict[str, Tone] = {OK: "good", PROBLEM: "bad"}
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    head, tone = f"{finding.status:<{_STATE_WIDTH}}", tones.get(finding.status, "unsure")
    say_item(head, f"{finding.check}: {finding.found}{remedy}", tone=tone)
