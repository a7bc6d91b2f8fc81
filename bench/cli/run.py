"""The command `bench run`: from its options to a specification and a plan, and from there to a finished study."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import (
    FILE,
    MOST_LISTED,
    MOST_PROCESSES,
    WHOLE,
    WholeNumber,
    data_option,
    names,
    store_option,
    tracking_option,
)
from bench.errors import BenchError
from bench.outputs.commands import command
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.diagnostics.speed.estimate import Estimate
    from bench.execution.settings import RunSettings
    from bench.planning.plan import Plan
    from bench.planning.units import Unit
    from bench.results.status import UnitState
    from bench.spec.schema import StudySpec
    from bench.store.files import Store


@click.command()
@click.option("--preset", default=None, help="Preset to start from; `bench list presets` names them.  [default: quick]")
@click.option("--schedule", default=None, help="Schedule in place of the preset's own: quick, short or paper.")
@click.option(
    "--spec",
    "spec_file",
    type=FILE,
    default=None,
    help="Specification to start from: a TOML file, a study's study.json or a run's spec.json.",
)
@click.option("--name", default=None, help="Name of the study.")
@click.option("--methods", default=None, help="Methods, separated by commas: names, or path/to/file.py:Class.")
@click.option("--model", default=None, help="Model, or several separated by commas.")
@click.option("--dataset", default=None, help="Data set.")
@click.option(
    "--budget",
    "budgets",
    default=None,
    help="Budgets, separated by commas: 4bit or 2.5bit (the cost of so many bits), 630.6M (bit operations; also k, G, "
    "T), 0.016x (share of full precision), 395KB or 2MB (memory), 21.6ms (latency), 29.8mJ (energy), 4bit:KB or "
    "0.9x:ms (another measure), 1.2ms@onnxruntime (on this hardware).",
)
@click.option("--seeds", default=None, help="Number of seeds (5), or a list of seeds (0,1,2).")
@click.option(
    "--jobs", type=WholeNumber(1, MOST_PROCESSES), default=1, show_default=True, help="Number of runs at the same time."
)
@click.option(
    "--backend", default="threading", show_default=True, help="Backend that starts runs: threading, loky or dask."
)
@click.option("--scheduler", default=None, metavar="ADDRESS", help="Address of a Dask cluster, for --backend dask.")
@click.option("--timeout", default=None, metavar="TIME", help="Time limit of each run and trial: 90s, 30min or 2h.")
@click.option("--memory-limit", default=None, metavar="SIZE", help="Memory limit of each run and trial: 800MB or 8GB.")
@click.option(
    "--retry",
    default=None,
    metavar="OUTCOMES",
    help="Outcomes to try again, separated by commas: failed, diverged (loss became infinite), timeout, oom (out of "
    "memory) or all.",
)
@click.option(
    "--runs-per-card",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    help="Number of runs that share a GPU, with --device cuda.",
)
@click.option(
    "--optuna-storage",
    envvar="BENCH_OPTUNA_STORAGE",
    default=None,
    metavar="URL",
    help="Database for Optuna's dashboard.",
)
@click.option("--in-process", is_flag=True, help="Run everything in this process and without limits, for debuggers.")
@click.option("--device", default=None, help="Device: auto, cpu, cuda or cuda:N.")
@click.option(
    "--devices", type=WholeNumber(1), default=None, help="Number of GPUs of one host for each run.  [default: 1]"
)
@click.option(
    "--ablate",
    "ablations",
    multiple=True,
    metavar="KEY=A,B,…",
    help="Option to change alone, with the values to try; may be given several times.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value of any key of the specification, which `bench list keys` lists; may be given several times.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print all planned trials and runs with their expected time, and run nothing."
)
@store_option
@data_option
@tracking_option
def run(
    store_dir: Path, data_dir: Path | None, tracking_uri: str | None, dry_run: bool, jobs: int, **options: Any
) -> int:
    """Run a study and print its table.

    A study tunes each method onto each budget and repeats it over seeds. Results that the store already has are
    reused, so the same command continues an interrupted study.
    """
    _hint("planning the study …")  # before PyTorch is imported, which takes seconds
    from bench.execution.settings import check_settings
    from bench.outputs.terminal import make_console
    from bench.planning.networks import with_counted_classes
    from bench.planning.plan import make_plan
    from bench.store.files import Store

    settings = _run_settings(Store(store_dir), data_dir, jobs, options)
    console = make_console()
    spec = make_specification(**options, elsewhere=settings.scheduler is not None)
    plan = make_plan(_with_measured_times(with_counted_classes(spec, data_dir), settings.store))
    check_settings(settings, plan.spec.device, plan.spec.devices)
    if dry_run:
        _print_plan(console, plan, settings.store, data_dir, jobs)
        return 0
    return _run(plan, settings, tracking_uri)


def _with_measured_times(spec: StudySpec, store: Store) -> StudySpec:
    """Measure the times of layers, if a runtime is the study's hardware."""
    if not spec.accelerator.measured:
        return spec
    from bench.export.layer_times import with_measured_times

    return with_measured_times(spec, store, partial(say, err=True))


def _run_settings(store: Store, data_dir: Path | None, jobs: int, options: dict[str, Any]) -> RunSettings:
    """Take the options that are about the machine, and not about the study, out of all options."""
    from bench.execution.settings import make_settings

    keys = ("backend", "scheduler", "timeout", "memory_limit", "retry", "optuna_storage", "in_process")
    chosen = {key: options.pop(key) for key in keys}
    words = ("bench", *sys.argv[1:])
    return make_settings(store, data_dir, jobs=jobs, runs_per_gpu=options.pop("runs_per_card"), command=words, **chosen)


def _run(plan: Plan, settings: RunSettings, tracking_uri: str | None) -> int:
    """Run a plan and print the table; return the exit status."""
    from bench.cli.console import show_document
    from bench.errors import EXIT_SOME_FAILED
    from bench.interface.progress import make_watcher
    from bench.reporting.mlflow.tracker import Tracker
    from bench.reporting.report import DEFAULT_REPORT, make_document
    from bench.results.tables import StudyResults
    from bench.store.outcomes import RESULTS
    from bench.store.urls import without_password
    from bench.study import run_study

    store = settings.store
    tracker = Tracker(tracking_uri, store.root)
    results = StudyResults(store, run_study(plan, settings, tracker, make_watcher()))
    show_document(make_document(results, [DEFAULT_REPORT]))
    server = ("--tracking-uri", without_password(tracking_uri)) if tracking_uri else ()
    say("")
    say(f"tables and runs.csv: {store.study(plan.spec.name)}")
    page = ("--out", f"{plan.spec.name}-report", "--open")
    say(f"as a page, opened in a browser: {command('report', plan.spec.name, *page, store=store.root)}")
    say(f"in MLflow: {command('ui', plan.spec.name, *server, store=store.root)}")
    return 0 if results.runs["status"].isin(RESULTS).all() else EXIT_SOME_FAILED


# --- the specification --------------------------------------------------------------------------------------------


def make_specification(
    *,
    preset: str | None,
    schedule: str | None,
    spec_file: Path | None,
    settings: tuple[str, ...],
    ablations: tuple[str, ...],
    elsewhere: bool,
    **flags: Any,
) -> StudySpec:
    """Build the specification from preset or file, `--set` and flags, in this order of precedence.

    Args:
        preset: Name of a preset.
        schedule: Name of a schedule in place of the preset's own.
        spec_file: File with a specification, in place of a preset.
        settings: Arguments of `--set`.
        ablations: Arguments of `--ablate`.
        elsewhere: Whether runs are on other machines, so that the device need not exist here.
        flags: Values of the other flags; `None` for flags that were not given.

    Raises:
        BenchError: A value is wrong, or two of them contradict each other.
    """
    from bench.interface.specification import make_specification as made
    from bench.spec.sources import merge, parse_ablation, parse_setting

    if preset is not None and spec_file is not None:
        raise BenchError(f"--preset {preset} and --spec {spec_file} exclude each other; give one of them")
    values: dict[str, Any] = {}
    for setting in settings:
        values = merge(values, parse_setting(setting))
    values = merge(values, _flag_values(**flags))
    if ablations:
        values["ablate"] = dict(map(parse_ablation, ablations))
    return made(values, preset=preset, file=spec_file, schedule=schedule, elsewhere=elsewhere)


def _flag_values(
    *,
    name: str | None = None,
    methods: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    budgets: str | None = None,
    seeds: str | None = None,
    device: str | None = None,
    devices: int | None = None,
) -> dict[str, Any]:
    """Return the values of the specification that flags state."""
    models = [] if model is None else names(model, "--model")
    task = {"model": models[0] if models else None, "dataset": dataset}
    values = {
        "name": name,
        "device": device,
        "devices": devices,
        "methods": None if methods is None else names(methods, "--methods"),
        "budgets": None if budgets is None else names(budgets, "--budget"),
        "seeds": None if seeds is None else parse_seeds(seeds),
        "further_models": models[1:] if models else None,
        "task": {key: value for key, value in task.items() if value is not None} or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def parse_seeds(text: str) -> list[int]:
    """Read the argument of `--seeds`: a count, or a list with at least one comma.

    Raises:
        BenchError: The text is neither.
    """
    from bench.interface.specification import MOST_SEEDS

    parts = text.rstrip().removesuffix(",").split(",")
    numbers = [int(part) for part in parts] if all(map(WHOLE.fullmatch, parts)) else []
    if not numbers or ("," not in text and not 1 <= numbers[0] <= MOST_SEEDS):
        raise BenchError(
            f"--seeds '{text}' is not understood; give a count up to {MOST_SEEDS}, e.g. 5, or a list, e.g. 0,1,2 or 7,"
        )
    return numbers if "," in text else list(range(numbers[0]))


def _hint(line: str) -> None:
    """Print a line for somebody who waits at a terminal; a refused command prints its one line of error elsewhere."""
    if sys.stdout.isatty():
        say(line)


# --- a dry run ----------------------------------------------------------------------------------------------------


def _print_plan(console: Console, plan: Plan, store: Store, data_dir: Path | None, jobs: int) -> None:
    from bench.outputs.times import duration
    from bench.planning.checkpoints import check_checkpoints
    from bench.planning.plan import phases
    from bench.results.status import unit_states
    from bench.store.outcomes import RESULTS
    from bench.study import notes_before, study_document

    check_checkpoints(plan.spec)
    _hint("loading the data …")
    estimates = _estimates(plan, data_dir)
    checksum = next(iter(estimates.values())).data.checksum
    document = study_document(plan, checksum)
    states = {state.identity: state for state in unit_states(store, document)}
    left = [
        (unit, 0.0 if states[unit.identity].state in RESULTS else estimates[unit.spec.task.model].seconds(unit))
        for _, units in phases(plan)
        for unit in units
    ]
    console.print(_plan_table(f"plan of study {plan.spec.name}", left, states))
    for line in notes_before(plan, store, document, states.values()):
        say(line)
    total = sum(seconds for _, seconds in left)
    say(f"about {duration(total / jobs)} with {jobs} at a time; up to {plan.most_trials} trials a tuning")


def _plan_table(heading: str, left: Sequence[tuple[Unit, float]], states: Mapping[str, UnitState]) -> Table:
    """Make the table of a plan: a row for each unit, or of a large plan for all units that differ in their seeds alone.

    Args:
        heading: Line above the table.
        left: Units, with the seconds that each takes.
        states: States of the units by identity.
    """
    from bench.cli.console import simple_table
    from bench.outputs.times import duration
    from bench.planning.units import title

    if len(left) <= MOST_LISTED:
        columns = {"unit": False, "state": False, "time left": True, "id": False}
        return simple_table(
            heading,
            columns,
            [[title(unit), states[unit.identity].state, duration(seconds), unit.identity] for unit, seconds in left],
        )
    groups: dict[tuple[str, str], list[float]] = {}
    for unit, seconds in left:
        without_seed = title(unit).replace(f" seed {unit.seed}", "", 1)
        groups.setdefault((without_seed, states[unit.identity].state), []).append(seconds)
    columns = {"units of all seeds": False, "state": False, "units": True, "time left": True}
    return simple_table(
        heading, columns, [[*key, str(len(times)), duration(sum(times))] for key, times in groups.items()]
    )


def _estimates(plan: Plan, data_dir: Path | None) -> dict[str, Estimate]:
    """Measure the steps on each model of a study, and say so one by one."""
    from bench.diagnostics.speed.estimate import StepTime, estimate
    from bench.execution.task_loader import TaskLoader

    units = {unit.spec.task.model: unit for unit in plan.runs[::-1]}
    loaders = {model: TaskLoader(unit.spec, data_dir) for model, unit in units.items()}
    for loader in loaders.values():
        _ = loader.task  # data that are missing are an error before anything is printed
    say("measuring a few steps of each kind of work …")
    estimates = {}
    for model, loader in loaders.items():

        def report(name: str, time: StepTime, model: str = model) -> None:
            say(f"measured on {model}: {1000 * time.step:.0f} ms a step of {name}")

        runs = [run for run in plan.runs if run.spec.task.model == model]
        estimates[model] = estimate(runs, loader, report)
    return estimates
