"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import __version__
from bench.cli.compare import compare, plan_seeds
from bench.cli.cost import cost
from bench.cli.list import list_
from bench.cli.options import FILE, FOLDER, data_option, names, store_option, tracking_option
from bench.cli.speed import speed
from bench.cli.store import archive, clean, doctor, restore
from bench.cli.tracking import sync
from bench.cli.validate import validate
from bench.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.diagnostics.speed.estimate import Estimate
    from bench.execution.settings import RunSettings
    from bench.planning.plan import Plan
    from bench.spec.schema import StudySpec
    from bench.store.files import Store

_MOST_SEEDS = 10_000


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="sbs-bench")
@click.pass_context
def bench(context: click.Context) -> None:
    """Compare neural-network compression methods at matched bit-operation budgets.

    \b
    bench run --methods sbs,dnas          compare two methods on the embedded data set
    bench report                          the table of the latest study
    bench ui                              the same in MLflow
    """  # noqa: D301  (click wants the character)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@bench.command()
@click.option("--preset", default=None, help="A named specification; see `bench list presets`.  [default: quick]")
@click.option("--schedule", default=None, help="quick, short or paper, in place of the preset's own.")
@click.option("--spec", "spec_file", type=FILE, default=None, help="A specification (TOML), or a study.json.")
@click.option("--name", default=None, help="Name of the study.")
@click.option("--methods", default=None, help="Names, or path/to/file.py:Class, separated by commas.")
@click.option("--model", default=None, help="Name of a model; several separated by commas.")
@click.option("--dataset", default=None, help="Name of a data set.")
@click.option("--budget", "budgets", default=None, help="4bit, 630.6M or 0.016x; several separated by commas.")
@click.option("--seeds", default=None, help="A count (5) or a list (0,1,2).")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs worked on at once.")
@click.option("--backend", default="threading", show_default=True, help="threading, loky or dask.")
@click.option("--scheduler", default=None, metavar="ADDRESS", help="Of a Dask cluster, for --backend dask.")
@click.option("--timeout", default=None, metavar="TIME", help="Limit for each run and trial: 90s, 30min, 2h.")
@click.option("--memory-limit", default=None, metavar="SIZE", help="Limit for each run and trial: 800MB, 8GB.")
@click.option("--retry", default=None, metavar="HOW", help="Try runs again that ended so: failed, timeout, oom, all.")
@click.option("--runs-per-card", type=click.IntRange(1), default=1, show_default=True, help="With --device cuda.")
@click.option("--optuna-storage", default=None, metavar="URL", help="Database for Optuna's dashboard.")
@click.option("--in-process", is_flag=True, help="Work in this process, without limits: for debuggers.")
@click.option("--device", default=None, help="auto, cpu, cuda or cuda:N.")
@click.option("--devices", type=click.IntRange(1), default=None, help="Cards of a host for each run.  [default: 1]")
@click.option("--ablate", "ablations", multiple=True, metavar="KEY=A,B,…", help="Change one option at a time.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any value of the specification.")
@click.option("--dry-run", is_flag=True, help="Print every planned trial and run, and how long they will take.")
@store_option
@data_option
@tracking_option
def run(
    store_dir: Path,
    data_dir: Path | None,
    tracking_uri: str | None,
    dry_run: bool,
    jobs: int,
    backend: str,
    scheduler: str | None,
    timeout: str | None,
    memory_limit: str | None,
    retry: str | None,
    runs_per_card: int,
    optuna_storage: str | None,
    in_process: bool,
    **asked: Any,
) -> int:
    """Run a study: tune each method onto each budget, repeat over seeds, print the table.

    What the store already has is not repeated, so the same command continues an interrupted study.
    """
    from bench.cli.console import make_console
    from bench.execution.settings import Limits, RunSettings, check_settings, parse_backend, parse_seconds, parse_size
    from bench.planning.plan import make_plan, with_counted_classes
    from bench.store.files import Store
    from bench.store.outcomes import parse_retry
    from bench.store.urls import check_database, with_driver

    how = RunSettings(
        store=Store(store_dir),
        data_dir=data_dir,
        jobs=jobs,
        backend=parse_backend(backend, scheduler, in_process=in_process, jobs=jobs),
        scheduler=scheduler,
        isolated=not in_process,
        limits=Limits(
            seconds=None if timeout is None else parse_seconds(timeout),
            memory_bytes=None if memory_limit is None else parse_size(memory_limit),
        ),
        retry=frozenset() if retry is None else parse_retry(retry),
        runs_per_card=runs_per_card,
        optuna_storage=None if optuna_storage is None else check_database(with_driver(optuna_storage)),
    )
    console = make_console()
    spec = with_counted_classes(_specification(**asked, elsewhere=scheduler is not None), data_dir)
    plan = make_plan(spec)
    check_settings(how, plan.spec.device, plan.spec.devices)
    if dry_run:
        _print_plan(console, plan, how.store, data_dir, jobs)
        return 0
    return _run(console, plan, how, tracking_uri)


def _run(console: Console, plan: Plan, how: RunSettings, tracking_uri: str | None) -> int:
    from bench.cli.console import LiveWatcher
    from bench.errors import EXIT_SOME_FAILED
    from bench.plugins.registry import load
    from bench.reporting.mlflow.tracker import Tracker
    from bench.reporting.report import DEFAULT_REPORT, make_document
    from bench.results.tables import StudyResults
    from bench.store.outcomes import RESULTS
    from bench.study import run_study

    store = how.store
    tracker = Tracker(tracking_uri, store.root)
    results = StudyResults(store, run_study(plan, how, tracker, LiveWatcher(console)))
    click.echo(load("forms", "terminal").render(make_document(results, [DEFAULT_REPORT]), console.width))
    where = f" --tracking-uri {tracking_uri}" if tracking_uri else ""
    click.echo(f"\ntables and runs.csv: {store.study(plan.spec.name)}\nin MLflow: bench ui{where}")
    ended_well = results.runs["status"].isin(RESULTS).all()
    return 0 if ended_well else EXIT_SOME_FAILED


def _specification(
    *,
    preset: str | None,
    schedule: str | None,
    spec_file: Path | None,
    name: str | None,
    methods: str | None,
    model: str | None,
    dataset: str | None,
    budgets: str | None,
    seeds: str | None,
    device: str | None,
    devices: int | None,
    settings: tuple[str, ...],
    ablations: tuple[str, ...],
    elsewhere: bool,
) -> StudySpec:
    """The specification from preset, file, `--set` and flags, with the device resolved."""
    from bench.plugins.method_files import with_files
    from bench.spec.sources import build, merge, parse_ablation, parse_setting, read_preset, with_schedule
    from bench.store.machine import resolve_device

    if preset is not None and spec_file is not None:
        raise BenchError(f"--preset {preset} and --spec {spec_file} exclude each other; give one of them")
    base = with_schedule(_stated(spec_file) if spec_file is not None else read_preset(preset or "quick"), schedule)
    models = [] if model is None else names(model, "--model")
    stated = (("model", models[0] if models else None), ("dataset", dataset))
    task = {key: value for key, value in stated if value is not None}
    flags: dict[str, Any] = {"task": task} if task else {}
    if models:
        flags["further_models"] = models[1:]
    lists = (("methods", "--methods", methods), ("budgets", "--budget", budgets))
    flags |= {key: names(value, flag) for key, flag, value in lists if value is not None}
    single = (("name", name), ("device", device), ("devices", devices))
    flags |= {key: value for key, value in single if value is not None}
    if seeds is not None:
        flags["seeds"] = _seeds(seeds)
    asked: dict[str, Any] = {}
    for setting in settings:
        asked = merge(asked, parse_setting(setting))
    asked = with_files(merge(asked, flags))
    if ablations:
        asked["ablate"] = dict(map(parse_ablation, ablations))
    for about in ("options", "method_files"):  # without those of methods that were not asked for
        if "methods" in asked and isinstance(base.get(about), Mapping):
            base = {**base, about: {name: of for name, of in base[about].items() if name in asked["methods"]}}
    spec = build([base, asked])
    return spec.model_copy(update={"device": str(resolve_device(spec.device, spec.devices, elsewhere=elsewhere))})


def _stated(path: Path) -> dict[str, Any]:
    """The values in a specification file, or those that a study or a run was made with, from its `.json`.

    Raises:
        BenchError: The file cannot be read or holds something else.
    """
    from bench.spec.sources import read_toml
    from bench.store.files import read_checked

    if path.suffix != ".json":
        return read_toml(path)
    document = read_checked(path) or {}
    values = document.get("spec") or document.get("specification")  # of a study, of a run
    if not isinstance(values, dict):
        raise BenchError(
            f"--spec '{path}' holds no specification; give a TOML file, a study's study.json or a run's spec.json"
        )
    return values


def _seeds(text: str) -> list[int]:
    """A count, or a list with at least one comma."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or ("," not in text and not 1 <= numbers[0] <= _MOST_SEEDS):
        raise BenchError(
            f"--seeds '{text}' is not understood; give a count up to {_MOST_SEEDS}, e.g. 5, or a list, e.g. 0,1,2 or 7,"
        )
    return numbers if "," in text else list(range(numbers[0]))


def _print_plan(console: Console, plan: Plan, store: Store, data_dir: Path | None, jobs: int) -> None:
    from bench.cli.console import simple_table
    from bench.diagnostics.speed.estimate import unit_states
    from bench.planning.plan import title
    from bench.reporting.wording import duration

    guesses = _estimates(plan, store, data_dir)
    rows, total = [], 0.0
    for _, unit, state in unit_states(plan, store):
        seconds = 0.0 if state in ("done", "unreachable") else guesses[unit.spec.task.model].seconds(unit)
        total += seconds
        rows.append([title(unit), state, duration(seconds), unit.identity])
    columns = {"unit": False, "state": False, "time left": True, "id": False}
    console.print(simple_table(f"plan of study {plan.spec.name}", columns, rows))
    for model, guess in guesses.items():
        steps = {"training": guess.training, "fine-tuning": guess.finetuning, **guess.searches}
        measured = ", ".join(f"{name} {1000 * time.step:.0f} ms" for name, time in steps.items())
        console.print(f"measured steps of {model}: {measured}", highlight=False)
    console.print(
        f"about {duration(total / jobs)} with {jobs} at a time; up to {plan.spec.tuning.trials} trials a tuning",
        highlight=False,
    )


def _estimates(plan: Plan, store: Store, data_dir: Path | None) -> dict[str, Estimate]:
    """Measured steps on each model of a study."""
    from bench.diagnostics.speed.estimate import estimate
    from bench.execution.stages import Workbench
    from bench.planning.plan import network_of

    units = {unit.spec.task.model: unit for unit in plan.runs[::-1]}
    return {
        model: estimate(
            [tuning for tuning in plan.tunings if tuning.spec.task.model == model],
            Workbench(unit.spec, store, data_dir, network_of(unit)),
        )
        for model, unit in units.items()
    }


@bench.command()
@click.argument("study", required=False)
@store_option
def status(study: str | None, store_dir: Path) -> None:
    """Show how far a study is: state of every unit, progress, last sign of life."""
    from bench.cli.console import make_console, simple_table
    from bench.results.status import unit_states
    from bench.store.files import Store
    from bench.store.leases import Leases, sessions

    store = Store(store_dir)
    document = store.load_study(study)
    states = list(unit_states(store, document))
    columns = {
        "unit": False,
        "state": False,
        "progress": False,
        "last sign": True,
        "held by": False,
        "tries": True,
        "top-1 %": True,
        "BOPs (M)": True,
        "reason": False,
    }
    rows = [
        [
            state.title,
            state.state,
            state.progress,
            _figure(state.sign, "{:.0f} s ago"),
            state.holder,
            str(state.attempt or ""),
            _figure(state.top1, "{:.2f}"),
            _figure(state.bops, "{:.1f}", 1e-6),
            state.reason,
        ]
        for state in states
    ]
    used = [heading for index, heading in enumerate(columns) if any(row[index] for row in rows)]
    kept = [[cell for cell, heading in zip(row, columns, strict=True) if heading in used] for row in rows]
    console = make_console()
    console.print(simple_table(f"study {document['name']}", {name: columns[name] for name in used}, kept))
    counts = Counter(state.state for state in states)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False)
    for view in sessions(Leases(store.root), str(document["name"])):
        console.print(f"run by {view.holder}", highlight=False)


def _figure(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None or math.isnan(value) else form.format(value * scale)


@bench.command()
@click.argument("study", required=False)
@click.option("--report", "wanted", default=None, help="See `bench list reports`; several by commas, or all.")
@click.option("--format", "form", default="terminal", show_default=True, help="See `bench list forms`.")
@click.option("--out", type=FOLDER, default=None, help="Write a page, tables and figures in all forms to this folder.")
@store_option
def report(study: str | None, wanted: str | None, form: str, out: Path | None, store_dir: Path) -> None:
    """Print a study's table, or write all reports; the latest study when none is named.

    \b
    bench report                          the comparison of methods
    bench report --out report             everything: page, tables, figures
    bench report --report comparison --format latex
    """  # noqa: D301  (click wants the character)
    from bench.cli.console import make_console
    from bench.plugins.registry import load
    from bench.reporting.report import DEFAULT_REPORT, make_document, write_document
    from bench.results.tables import StudyResults
    from bench.store.files import Store

    shown = load("forms", form)
    store = Store(store_dir)
    results = StudyResults(store, store.load_study(study))
    everything = wanted == "all" or (wanted is None and (out is not None or shown.page))
    chosen = None if everything else names(wanted or DEFAULT_REPORT, "--report")
    document = make_document(results, chosen)
    if out is None:
        click.echo(shown.render(document, make_console().width))
        return
    files = write_document(document, out)
    click.echo(
        f"{len(files)} files in {out}: {', '.join(sorted(file.name for file in files if file.suffix == '.html'))}"
    )


@bench.command()
@click.argument("study", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--open", "open_browser", is_flag=True, help="Show it in a browser.")
@store_option
@tracking_option
def ui(study: str | None, port: int, host: str, open_browser: bool, store_dir: Path, tracking_uri: str | None) -> None:
    """Open a study in MLflow's comparison view, on this machine only."""
    import signal

    from bench.reporting.mlflow.ui import launch_ui
    from bench.store.files import Store

    for number in (signal.SIGTERM, signal.SIGHUP):  # else the server would outlive its terminal
        signal.signal(number, signal.default_int_handler)
    store = Store(store_dir)
    name = str(store.load_study(study)["name"])
    with launch_ui(store.root, tracking_uri, name, host, port, open_browser=open_browser) as view:
        click.echo(view.url)
        for shows, url in view.views.items():
            click.echo(f"{shows}: {url}")
        click.echo("press Ctrl-C to stop")
        view.wait()


_VERDICTS = {"yes": "pass", "no": "FAIL", "deviation": "note"}


@bench.command()
@click.option("--out", type=FOLDER, default=None, help="Write the lines as a table, and figures, to this folder.")
def verify(out: Path | None) -> int:
    """Check the paper's theorem, bounds, toy regression and printed costs against this implementation."""
    from bench.diagnostics.verify import verification
    from bench.errors import EXIT_SOME_FAILED
    from bench.plugins.entry_points import available
    from bench.plugins.registry import load
    from bench.reporting.report import Figure, write_document

    lines, figures = [], []
    for name in available("checks"):
        for found in load("checks", name)():
            if isinstance(found, Figure):
                figures.append(found)
            else:
                lines.append(found)
                click.echo(f"{_VERDICTS[found.verdict]}  {found.what}: {found.figure}")
    if out is not None:
        click.echo(f"{len(write_document(verification(lines, figures), out))} files in {out}")
    counts = Counter(line.verdict for line in lines)
    failed, deviations = counts["no"], counts["deviation"]
    click.echo(f"{failed} checks failed" if failed else "all checks passed")
    if deviations:
        click.echo(f"{deviations} printed figures are not what the paper's own rules give: see the lines with 'note'")
    return EXIT_SOME_FAILED if failed else 0


for _command in (list_, cost, speed, clean, archive, restore, doctor, sync, compare, plan_seeds, validate):
    bench.add_command(_command)
