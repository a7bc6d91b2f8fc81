"""The command `bench export`: networks of runs as files that run without the harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import FOLDER, data_option, names, store_option
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from bench.export.export import Exports


@click.command()
@click.argument("name", metavar="RUN|STUDY[/METHOD[/BUDGET]]")
@click.option(
    "--format",
    "forms",
    default="packed",
    show_default=True,
    help="Forms, separated by commas: packed, onnx, onnx-qdq, qonnx.",
)
@click.option(
    "--out", type=FOLDER, default=None, help="Folder that gets a folder for each run.  [default: exports in the store]"
)
@click.option("--measure", is_flag=True, help="Also measure how long ONNX forms take, beside the float network.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
@store_option
def export(
    name: str,
    forms: str,
    out: Path | None,
    measure: bool,
    as_json: bool,
    data_dir: Path | None,
    store_dir: Path,
) -> int:
    """Export networks of runs as files that run without the harness.

    Each network is run over the whole test split, and its predictions are compared with those of the recorded one.
    The exit status is 1 if a form breaks its promise, or if one of several runs cannot be exported.

    \b
    bench export sbs/4bit                 all runs of a method at a budget, as packed networks
    bench export 9603492b --format packed,onnx,onnx-qdq --measure
    """  # noqa: D301  (click wants the character)
    import json

    from bench.cli.console import show
    from bench.errors import EXIT_SOME_FAILED
    from bench.export.export import export as exported
    from bench.export.tables import agreement_table, time_table

    made = exported(name, names(forms, "--format"), out=out, store=store_dir, data_dir=data_dir, measure=measure)
    if as_json:
        documents = [network.document for network in made.networks]
        click.echo(json.dumps({"networks": documents, "refused": made.refused, "left_out": made.left_out}, indent=1))
    else:
        show([agreement_table(made), *([time_table(made)] if measure else [])])
        _tell(made)
    broken = any(network.broken for network in made.networks)
    return EXIT_SOME_FAILED if broken or made.refused else 0


def _tell(made: Exports) -> None:
    """Print where files are, and what was not exported."""
    for network in made.networks:
        say(f"{network.run}: {network.folder}")
    for run, reason in made.refused.items():
        say(f"bench: {run} was not exported: {reason}", err=True)
    if made.left_out:
        say(f"left out, as they have full precision: {', '.join(made.left_out)}")
