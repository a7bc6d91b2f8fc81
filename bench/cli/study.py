"""The commands that look at studies: `bench status`, `report`, `compare`, `plan` for more seeds, and `leaderboard`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import FOLDER, MOST_LISTED, Number, data_option, names, networks_option, store_option
from bench.errors import BenchError
from bench.outputs.commands import command, shell
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from bench.results.status import UnitState

_LEFT = frozenset({"unit", "state", "progress", "held by", "reason"})
"""Columns of `bench status` that are left-aligned."""


_QUIET = frozenset({"done", "planned"})


@click.command()
@click.argument("study", required=False)
@click.option("--all", "every", is_flag=True, help="List every unit of a large study.")
@store_option
def status(study: str | None, every: bool, store_dir: Path) -> None:
    """Show the state and progress of every unit of a study.

    For a running unit, the last sign of life of its process is shown too. Of more than 200 units, those that are done
    or planned are only counted. Without STUDY, the latest study is shown.
    """
    from bench.cli.console import simple_table
    from bench.outputs.terminal import make_console
    from bench.outputs.times import duration
    from bench.results.status import seconds_left, unit_states
    from bench.store.files import Store
    from bench.store.leases import Leases, sessions

    store = Store(store_dir)
    document = store.load_study(study)
    states = list(unit_states(store, document))
    quiet = len(states) > MOST_LISTED and not every
    listed = [state for state in states if not (quiet and state.state in _QUIET)]
    rows = [_status_row(state) for state in listed]
    used = [heading for heading in (rows[0] if rows else ()) if any(row[heading] for row in rows)]
    columns = {heading: heading not in _LEFT for heading in used}
    console = make_console()
    if rows or not states:
        console.print(
            simple_table(f"study {document['name']}", columns, [[row[heading] for heading in used] for row in rows])
        )
    counts = Counter(state.state for state in states)
    say(f"{len(states)} units: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    left = seconds_left(document, states)
    if left:
        say(f"work left for one worker: about {duration(left)}, at the pace of the units that are done")
    if len(listed) < len(states):
        words = ("status", *([] if study is None else [study]), "--all")
        say(f"units that are done or planned are not listed; to list them: {command(*words, store=store.root)}")
    for view in sessions(Leases(store.root), str(document["name"])):
        say(f"run by {view.holder}")


def _status_row(state: UnitState) -> dict[str, str]:
    """Return the cells of a unit by heading."""
    from bench.costs.measures import Bops

    return {
        "unit": state.title,
        "state": state.state,
        "progress": state.progress,
        "last sign": _figure(state.sign, "{:.0f} s ago"),
        "held by": state.holder,
        "tries": str(state.attempt or ""),
        "seconds": _figure(state.seconds, "{:.1f}"),
        "top-1 %": _figure(state.top1, "{:.2f}"),
        Bops.title: "" if state.bops is None else _figure(state.bops / Bops.scale, "{:.1f}"),
        "reason": state.reason,
    }


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)


@click.command()
@click.argument("study", required=False)
@click.option(
    "--report",
    "wanted",
    default=None,
    help="Reports, separated by commas, or all; `bench list reports` names them.  [default: comparison]",
)
@click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    help="Form of the output; `bench list forms` names them.",
)
@click.option(
    "--out", type=FOLDER, default=None, help="Folder to which a page, tables and figures are written in all forms."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser, with --out.")
@store_option
def report(
    study: str | None, wanted: str | None, form: str, out: Path | None, open_browser: bool, store_dir: Path
) -> None:
    """Print a study's table, or write all reports. Without STUDY, the latest study is shown.

    \b
    bench report                          the comparison of methods
    bench report --out report --open      everything: page, tables, figures
    bench report --report comparison --format latex
    """  # noqa: D301  (click wants the character)
    from bench.cli.console import show_document
    from bench.outputs.folders import require_writable
    from bench.plugins.registry import load
    from bench.reporting.report import DEFAULT_REPORT, make_document, write_document
    from bench.results.tables import StudyResults
    from bench.store.files import Store

    if open_browser and out is None:
        raise BenchError("--open needs a folder for the page; give one with --out DIR")
    renderer = load("forms", form)
    store = Store(store_dir)
    results = StudyResults(store, store.load_study(study))
    if out is not None:
        require_writable(out)
    everything = wanted == "all" or (wanted is None and (out is not None or renderer.page))
    chosen = None if everything else names(DEFAULT_REPORT if wanted is None else wanted, "--report")
    document = make_document(results, chosen)
    if out is None:
        show_document(document, form)
        return
    files = write_document(document, out)
    pages = sorted(file.absolute().as_uri() for file in files if file.suffix == ".html")
    for page in pages:
        say(f"page: {page}")
    say(f"tables and figures: {len(files) - len(pages)} files in {out}")
    if open_browser:
        import webbrowser

        for page in pages:
            webbrowser.open(page)


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--all", "every_layer", is_flag=True, help="Also show layers that both treat alike.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def compare(first: str, second: str, every_layer: bool, as_json: bool, store_dir: Path) -> None:
    """Compare two methods, two runs or two studies.

    The output shows the paired difference, the costs, and the layers whose policies differ.

    \b
    bench compare sbs fixed               two methods of the latest study
    bench compare quick/sbs/4bit other/sbs/4bit
    bench compare 9603492b 2c94           two runs, by the beginning of their ids
    bench compare quick other             all methods that two studies share
    """  # noqa: D301  (click wants the character)
    import json

    from bench.cli.console import show
    from bench.interface.comparing import compare as compared

    comparison = compared(first, second, store=store_dir)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        show(comparison.tables_with(every_layer=every_layer))


@click.command("plan")
@click.argument("study", required=False)
@click.option("--detect", type=Number(), required=True, metavar="POINTS", help="Difference in Top-1 to find, e.g. 0.3.")
@click.option("--baseline", default=None, help="Method to compare with.  [default: the study's baseline]")
@store_option
def plan_seeds(study: str | None, detect: float, baseline: str | None, store_dir: Path) -> None:
    """Forecast how many seeds and hours a difference needs.

    The forecast follows from the spread of the study's runs so far. Without STUDY, the latest study is used.
    """
    from bench.cli.console import show
    from bench.outputs.commands import study_command
    from bench.reporting.power import forecast, no_forecast_reason, seeds_needed, table
    from bench.results.tables import StudyResults
    from bench.store.files import Store

    if not (math.isfinite(detect) and 0 < detect <= 100):
        raise BenchError(f"--detect {detect:g} is no difference in Top-1; give points above 0 up to 100, e.g. 0.3")
    store = Store(store_dir)
    document = store.load_study(study)
    plan = forecast(StudyResults(store, document), detect, baseline)
    reason = no_forecast_reason(plan)
    if reason is not None:
        say(reason)
    else:
        show([table(plan)])
        again, seeds = study_command(document.get("command"), store.root), seeds_needed(plan)
        if again and seeds > len(document["spec"].get("seeds") or ()):
            say(f"to run them: {again} --seeds {seeds}", tone="strong")


@click.command()
@click.argument("sources", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder to which the site is written.")
@networks_option
@data_option
def leaderboard(sources: tuple[Path, ...], out: Path, data_dir: Path | None, *, networks: bool) -> int:
    """Write a static site that ranks the methods of many studies.

    SOURCES are stores, files of `bench archive`, and folders of published studies. Archives are checked as
    `bench verify` does, and refused if they fail.

    \b
    bench leaderboard bench-store --out site
    bench leaderboard docs/results theirs.tar.gz --networks --out site
    """  # noqa: D301  (click wants the character)
    from bench.errors import EXIT_SOME_FAILED, BenchError
    from bench.leaderboard import boards_of, entries_of, read_sources, write_site
    from bench.outputs.folders import require_writable
    from bench.reporting.wording import count

    with read_sources(sources, data_dir, networks=networks) as read:
        boards = boards_of(entries_of(read))
        if not boards:
            reasons = "; ".join(f"{source.name} is refused: {source.refused}" for source in read if source.refused)
            raise BenchError(
                reasons or "no source has a run with a result at a budget; finish a study first: bench run"
            )
        require_writable(out)
        for source in read:
            say(f"{source.name}: {source.in_words}")
        files = write_site(out, boards, read)
        refused = sum(bool(source.refused) for source in read)
    say(f"{len(files)} files in {out}, {count(len(boards), 'ranking')}; open {shell(out / 'index.html')}")
    return EXIT_SOME_FAILED if refused else 0
