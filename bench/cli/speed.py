"""The command `bench speed`, which measures the time and memory of training steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import FILE, MOST_PROCESSES, WholeNumber, names
from bench.errors import BenchError
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from bench.diagnostics.speed.config import SpeedConfig
    from bench.diagnostics.speed.growth import Growth
    from bench.diagnostics.speed.published import Sharing
    from bench.diagnostics.speed.rows import Row, Speed
    from bench.method import Method

_GROWTH_METHODS = "sbs_q,multi_path"
_GROWTH_MODELS = "resnet8,resnet20,resnet56"
_MODES = {"off": (False,), "on": (True,), "both": (False, True)}


@click.command()
@click.option(
    "--methods",
    default=None,
    help=f"Methods, separated by commas.  [default: all; with --growth, {_GROWTH_METHODS}]",
)
@click.option(
    "--model", default=None, help="Model; with --growth depth several, separated by commas.  [default: resnet20]"
)
@click.option(
    "--dataset",
    default="cifar100",
    show_default=True,
    help="Data set whose image shape is used; the images are random.",
)
@click.option("--batch-size", type=WholeNumber(2), default=128, show_default=True, help="Images in each step.")
@click.option("--rounds", type=WholeNumber(2), default=10, show_default=True, help="Timed steps of each training.")
@click.option("--threads", type=WholeNumber(1, MOST_PROCESSES), default=2, show_default=True, help="CPU threads.")
@click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Precision of the forward passes.",
)
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(list(_MODES)),
    default="both",
    show_default=True,
    help="Whether networks are compiled; both gives one row for each.",
)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, or do not.")
@click.option(
    "--growth",
    type=click.Choice(["bits", "depth"]),
    default=None,
    help="Measure how steps grow with the number of candidate bits, or of layers.",
)
@click.option(
    "--plot", type=FILE, default=None, metavar="FILE", help="File to which the growth is drawn, .svg, .png or .pdf."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the time of every single step.")
def speed(
    methods: str | None,
    model: str | None,
    dataset: str,
    compiling: str,
    growth: str | None,
    plot: Path | None,
    as_json: bool,
    device: str,
    **options: Any,
) -> None:
    """Measure search and fine-tuning steps of every method.

    Times and memory are relative to an ordinary training step.

    \b
    bench speed --compile off --rounds 5                     a first look, in a few minutes
    bench speed --methods sbs,dnas --device cuda --json      for the record
    bench speed --growth bits --plot growth.svg              with one to five candidate bits
    """  # noqa: D301  (click wants the character)
    _check_plot(plot, growth)
    from bench.diagnostics.speed.config import SpeedConfig
    from bench.store.machine import resolve_device

    models = names(model or (_GROWTH_MODELS if growth == "depth" else "resnet20"), "--model")
    if len(models) > 1 and growth != "depth":
        raise BenchError(f"--model {model} names several models; give one, or add --growth depth")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise BenchError(f"--device '{device}' is no device; allowed: auto, cpu, cuda or cuda:N")
    resolved = resolve_device(device)
    settings = [SpeedConfig(model=name, dataset=dataset, device=resolved, **options) for name in models]
    _check_names(settings)
    growing = _GROWTH_METHODS if methods is None and growth is not None else methods
    if growth == "bits" and ".py" in (growing or ""):
        raise BenchError(f"--growth bits takes registered methods only, not the file in --methods {growing}")
    chosen = _methods(None if growing is None else names(growing, "--methods"))
    modes = _modes(compiling, settings[0])
    if growth is None:
        _measure_all(settings[0], chosen, modes, as_json=as_json)
    else:
        _measure_growth(growth, settings, chosen, modes, plot, as_json=as_json)


# --- the options ---------------------------------------------------------------------------------------------------


def _check_plot(plot: Path | None, growth: str | None) -> None:
    if plot is None:
        return
    if growth is None:
        raise BenchError(f"--plot {plot} has no effect without --growth; add --growth bits or --growth depth")
    if plot.suffix not in (".svg", ".png", ".pdf"):
        raise BenchError(f"--plot '{plot}' is not understood; give a file that ends in .svg, .png or .pdf")
    if not plot.absolute().parent.is_dir():
        raise BenchError(f"--plot '{plot}': there is no folder '{plot.parent}'")


def _methods(asked: Sequence[str] | None) -> dict[str, Method]:
    from bench.planning.methods import make_method
    from bench.plugins.entry_points import available
    from bench.plugins.method_files import with_files

    if asked is not None and len(set(asked)) < len(asked):
        raise BenchError(f"--methods {','.join(asked)} names one twice; each may appear once")
    named = with_files({"methods": list(available("methods") if asked is None else asked)})
    files = named.get("method_files", {})
    return {name: make_method(name, {}, files.get(name)) for name in named["methods"]}


def _check_names(settings: Sequence[SpeedConfig]) -> None:
    """Refuse unknown names before the measurement starts."""
    from bench.plugins.registry import load

    for setting in settings:
        load("models", setting.model)
        load("datasets", setting.dataset)


def _modes(compiling: str, setting: SpeedConfig) -> tuple[bool, ...]:
    """Return whether networks are compiled, for each of their rows; "both" means "off" when nothing can be compiled.

    Raises:
        BenchError: Only compiled networks were asked for, and nothing can be compiled here.
    """
    from torch import nn

    from bench.training.forward import Forward

    probe = Forward("off" if compiling == "off" else "on", "fp32", setting.device)
    probe.prepare(nn.Identity(), "measurement", 1.0)
    if "not_compiled" not in probe.record:
        return _MODES[compiling]
    if compiling == "on":
        raise BenchError(f"--compile on: {probe.record['not_compiled']}; or use --compile off")
    return _MODES["off"]


# --- measuring and showing -----------------------------------------------------------------------------------------


def _measure_all(setting: SpeedConfig, methods: Mapping[str, Method], modes: Sequence[bool], *, as_json: bool) -> None:
    import json

    from bench.diagnostics.speed.measure import measure
    from bench.diagnostics.speed.published import sharing
    from bench.diagnostics.speed.trainings import candidates
    from bench.outputs.terminal import make_console

    with _progress() as report:
        measured = measure(setting, candidates(methods, modes, setting.precision), report)
    compared = sharing(measured)
    if as_json:
        click.echo(json.dumps({**measured.to_json(), "sharing": [asdict(line) for line in compared]}, indent=1))
        return
    console = make_console()
    console.print(_table(_title(setting), measured.rows))
    for note in measured.notes:
        say(f"note: {note}")
    if compared:
        console.print(_sharing_table(measured, compared))


def _measure_growth(
    growth: str,
    settings: Sequence[SpeedConfig],
    methods: Mapping[str, Method],
    modes: Sequence[bool],
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    import json

    from bench.diagnostics.speed.growth import draw, growth_with_bits, growth_with_depth
    from bench.outputs.terminal import make_console

    with _progress() as report:
        if growth == "bits":
            measured = growth_with_bits(settings[0], list(methods), modes, report)
        else:
            measured = growth_with_depth(settings, methods, modes, report)
    if plot is not None:
        draw(measured, plot)
    if as_json:
        click.echo(json.dumps({**_head(settings), **measured.to_json()}, indent=1))
        return
    console = make_console()
    console.print(_growth_table(measured, _title(settings[0]) if growth == "bits" else _conditions(settings[0])))
    for note in measured.notes:
        say(f"note: {note}")
    if plot is not None:
        say(f"drawn: {plot}")


def _head(settings: Sequence[SpeedConfig]) -> dict[str, Any]:
    """Return the settings and the machine of a measurement, as JSON."""
    from bench.diagnostics.speed.config import head

    return head(settings[0]) | {"model": ",".join(setting.model for setting in settings)}


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show progress on stderr if it is a terminal; yield the function that sets the text."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as status:
        yield status.update


def _conditions(setting: SpeedConfig) -> str:
    return (
        f"{setting.dataset}'s shape, batches of {setting.batch_size}, {setting.rounds} rounds, {setting.device}, "
        f"{setting.threads} thread{'s' if setting.threads > 1 else ''}, {setting.precision}"
    )


def _title(setting: SpeedConfig) -> str:
    return f"{setting.model}, {_conditions(setting)}"


def _table(title: str, rows: Sequence[Row]) -> Table:
    from bench.cli.console import simple_table

    columns = {
        "stage": False,
        "training": False,
        "compiled": True,
        "step ms": True,
        "× fp32": True,
        "quartiles": True,
        "mean ×": True,
        "images/s": True,
        "saved ×": True,
        "peak ×": True,
    }
    cells = [
        [
            row.what,
            row.name,
            _compiled(row),
            f"{row.milliseconds.median:.1f}",
            *_times(row),
            f"{row.ratio.mean:.2f}",
            f"{row.images_per_second:,.0f}",
            _ratio(row.saved_ratio),
            _ratio(row.peak_ratio),
        ]
        for row in rows
    ]
    return simple_table(title, columns, cells)


def _compiled(row: Row) -> str:
    return "" if row.compile_seconds is None else f"in {row.compile_seconds:.0f} s"


def _times(row: Row) -> tuple[str, str]:
    """Format the ratio to the reference's step, and its quartiles."""
    return f"{row.ratio.median:.2f}", f"{row.ratio.low:.2f}–{row.ratio.high:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _sharing_table(speed: Speed, lines: Sequence[Sharing]) -> Table:
    from bench.cli.console import simple_table
    from bench.diagnostics.speed.published import SHARED

    columns = {
        "search": False,
        "compiled": False,
        "time ×": True,
        "saved ×": True,
        "peak ×": True,
        "paper: time ×": True,
        "paper: memory ×": True,
        "source": False,
    }
    cells = [
        [
            line.method,
            "yes" if line.compiled else "",
            f"{line.time:.2f}",
            _ratio(line.saved),
            _ratio(line.peak),
            _ratio(line.published_time),
            _ratio(line.published_memory),
            line.source,
        ]
        for line in lines
    ]
    title = f"cost of search against {SHARED} (with bit sharing, without pruning), {speed.config.model}"
    return simple_table(title, columns, cells)


def _growth_table(growth: Growth, title: str) -> Table:
    from bench.cli.console import simple_table

    columns = {
        "layers" if growth.axis == "depth" else "candidate bits": True,
        "search": False,
        "with": False,
        "compiled": True,
        "step ms": True,
        "× fp32": True,
        "quartiles": True,
        "saved ×": True,
        "peak ×": True,
    }
    cells = [
        [
            str(number),
            row.name,
            row.detail,
            _compiled(row),
            f"{row.milliseconds.median:.1f}",
            *_times(row),
            _ratio(row.saved_ratio),
            _ratio(row.peak_ratio),
        ]
        for number, row in growth.rows
    ]
    return simple_table(title, columns, cells)
