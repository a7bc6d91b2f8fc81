"""The command `bench list`, which lists the names that the command line knows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from bench.errors import BenchError, unknown_name
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from bench.method import Method
    from bench.plugins.entry_points import Kind

_KINDS = ["methods", "models", "datasets", "presets", "reports", "forms", "keys"]
_INDENT = 4
_LONG_WIDTH = 100


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("names", nargs=-1, metavar="[NAMES]...")
@click.option("--long", is_flag=True, help="Say more of each method, preset or key.")
def list_(kind: str, names: tuple[str, ...], *, long: bool) -> None:
    """List methods, models, data sets, presets or keys.

    There is one line on each entry. With NAMES, only these are listed; for keys also the tables that hold them. Reports
    and forms can be listed too.

    \b
    bench list methods
    bench list methods --long                   abilities of all methods, as a table
    bench list methods --long sbs dnas          sources, abilities, options and deviations of two methods
    bench list presets --long                   expected times of presets with each schedule
    bench list keys search tuning               keys for --set, with their defaults
    """  # noqa: D301  (click wants the character)
    if long and kind not in ("methods", "presets", "keys"):
        raise BenchError(f"--long describes methods, presets and keys only; it has no effect on {kind}")
    if kind == "keys":
        _print_keys(names, long=long)
    elif long and kind == "presets":
        _print_preset_times(_checked(kind, names, _preset_names()))
    elif long and not names:
        _print_abilities()
    elif long:
        for number, (name, method) in enumerate(_methods(names).items()):
            for line in [""] * bool(number) + _described(name, method):
                say(line)
    else:
        _print_lines(_entries(kind, names))


def _print_lines(entries: Mapping[str, str]) -> None:
    width = max(len(name) for name in entries)
    for name, summary in entries.items():
        say(f"{name:<{width}}  {summary}")


def _print_keys(names: Sequence[str], *, long: bool) -> None:
    """Print a line on each key of the specification, or all about it; names are keys, or tables that hold some."""
    from bench.spec.keys import keys

    known = keys()
    tables = dict.fromkeys(key.table for key in known if key.table)
    _checked("keys", names, [*tables, *(key.name for key in known)])
    chosen = [key for key in known if not names or key.name in names or key.table in names]
    if not long:
        _print_lines({f"{key.name} = {key.default}": key.summary for key in chosen})
        return
    for key in chosen:
        say(f"{key.name} = {key.default}")
        for line in _wrapped(key.allowed, _LONG_WIDTH) + _wrapped(key.meaning, _LONG_WIDTH):
            say(line)


def _entries(kind: str, names: Sequence[str]) -> dict[str, str]:
    """Return one line on each entry, by name."""
    from bench.plugins.entry_points import available
    from bench.plugins.summaries import summary, summary_of
    from bench.spec.sources import preset_summary

    if kind == "presets":
        return {name: preset_summary(name) for name in _checked(kind, names, _preset_names())}
    if kind == "methods" and any(".py:" in name for name in names):
        return {name: summary_of(method) for name, method in _methods(names).items()}
    plugins = cast("Kind", kind)
    return {name: summary(plugins, name) for name in _checked(kind, names, available(plugins))}


def _preset_names() -> list[str]:
    from bench.spec.sources import preset_names

    return preset_names()


def _checked(kind: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return the names that were given, or all known names.

    Raises:
        BenchError: A name is unknown.
    """
    for name in names:
        if name not in known:
            raise unknown_name(kind.removesuffix("s"), name, known, f"bench list {kind}")
    return list(names or known)


def _methods(names: Sequence[str]) -> dict[str, type[Method]]:
    """Return the classes of methods, registered or in files, by name."""
    from bench.planning.methods import method_class
    from bench.plugins.entry_points import available
    from bench.plugins.method_files import with_files

    named = with_files({"methods": list(names or available("methods"))})
    files = named.get("method_files", {})
    return {name: method_class(name, files.get(name)) for name in named["methods"]}


def _print_abilities() -> None:
    """Print a table of all methods: how each meets a budget, what it can choose, and where it is from."""
    from bench.cli.console import show
    from bench.reporting.report import Column, Table

    words = {"strength": "strength", "direct": "one search", "ignored": "reference"}
    rows = []
    for name, method in _methods(()).items():
        can = method.capabilities
        marks = ("yes" if has else "" for has in (can.prunes, can.mixed_precision, can.own_quantizer))
        rows.append((name, words[can.budget], *marks, _origin(method.source)))
    columns = (
        Column(title="Method", align="left"),
        Column(title="Budget", align="left", note="Budget: met by a tuned strength λ, or by one search that knows it"),
        Column(title="Filters", align="left", note="Filters: removes some of them"),
        Column(title="Bits", align="left", note="Bits: chooses them layer by layer"),
        Column(title="Quantizer", align="left", note="Quantizer: has its own, with recipe = own"),
        Column(title="Source", align="left"),
    )
    notes = ("Sources, options and deviations: bench list methods --long NAME",)
    show([Table(name="methods", title="Methods", columns=columns, rows=tuple(rows), notes=notes)])


def _origin(source: str) -> str:
    """Return the first author of a source, with the year if it states one."""
    year = re.search(r"\b(?:19|20)\d\d\b", source.partition(";")[0])
    author = re.split(r",|:| et al| and ", source)[0]
    return f"{author} et al. {year[0]}" if year else author


def _described(name: str, method: type[Method]) -> list[str]:
    """Return the lines that describe a method in full."""
    from bench.outputs.terminal import make_console
    from bench.plugins.summaries import summary_of

    width = make_console().width
    lines = [name, *_wrapped(summary_of(method), width)]
    facts = {
        "family": [method.family],
        "source": [method.source or "not stated"],
        "can": [", ".join(method.capabilities.in_words())],
        "options": list(_options(method)) or ["none"],
        "deviations": list(method.deviations) or ["none stated"],
    }
    for heading, texts in facts.items():
        for number, text in enumerate(texts):
            lines += _wrapped(f"{heading + ':' if not number else '':<12}{text}", width, 12)
    return lines


def _wrapped(text: str, width: int, hanging: int = 0) -> list[str]:
    """Indent a text and break it at the width of the terminal."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * _INDENT,
        subsequent_indent=" " * (_INDENT + hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _options(method: type[Method]) -> Iterator[str]:
    """Yield each option with its default, as `--set` reads it."""
    import json

    for name, field in method.Options.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else "absent" if default is None else json.dumps(default, default=str)
        yield f"{name} = {shown}" if shown not in ("required", "absent") else f"{name} ({shown})"


def _print_preset_times(names: Sequence[str]) -> None:
    from bench.cli.console import simple_table
    from bench.diagnostics.speed.preset_times import seconds
    from bench.outputs.terminal import make_console
    from bench.outputs.times import duration
    from bench.spec.sources import build, read_preset, schedule_names, with_schedule

    rows = []
    for name in names:
        specs = [build([with_schedule(read_preset(name), schedule)]) for schedule in schedule_names()]
        times = [seconds(spec) for spec in specs]
        runs = len(specs[0].methods) * len(specs[0].budgets)
        rows.append([name, str(runs), *("unknown" if time is None else duration(time) for time in times)])
    columns = {"preset": False, "rows": True, **dict.fromkeys(schedule_names(), True)}
    console = make_console()
    console.print(simple_table("presets, roughly, on two cores", columns, rows))
    say("bench run --preset P --schedule S --dry-run measures on this machine")
