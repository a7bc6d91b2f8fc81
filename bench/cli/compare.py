"""The commands on differences: `bench compare` shows one, `bench plan` forecasts the seeds that one needs."""

from __future__ import annotations

import math
from pathlib import Path

import click

from bench.cli.options import Number, store_option
from bench.errors import BenchError
from bench.outputs.terminal import say


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def compare(first: str, second: str, as_json: bool, store_dir: Path) -> None:
    """Compare two methods, two runs or two studies.

    The output shows the paired difference, the costs, and the policies layer by layer.

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
        show(comparison.tables)


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
    from bench.reporting.power import forecast, no_forecast_reason, table
    from bench.results.tables import StudyResults
    from bench.store.files import Store

    if not (math.isfinite(detect) and 0 < detect <= 100):
        raise BenchError(f"--detect {detect:g} is no difference in Top-1; give points above 0 up to 100, e.g. 0.3")
    store = Store(store_dir)
    plan = forecast(StudyResults(store, store.load_study(study)), detect, baseline)
    reason = no_forecast_reason(plan)
    if reason is not None:
        say(reason)
    else:
        show([table(plan)])
