"""The commands about deployment.

`bench choose` finds a network that fits a device, `bench export` writes its files, and `bench import` checks files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import FILE, FOLDER, data_option, names, store_option
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.export.choice import Candidate
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
    """Export networks as files that run without the harness.

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


@click.command(name="import")
@click.argument("file", type=FILE)
@click.option("--dataset", default=None, help="Name of a data set to evaluate on.  [default: the one in the file]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def import_(file: Path, dataset: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Check a file that `bench export` wrote: what it is, what it costs, and how it predicts.

    Nothing in the file is executed but operations that the harness writes itself. Costs are counted from the layers in
    the file. Its layers are compared with those of the model that it names, and with the document export.json beside
    it, if there is one. Every engine predicts the whole test split. The exit status is 1 if something is not as it is
    said to be.

    \b
    bench import exported/9603492b/network.safetensors
    bench import network.onnx --dataset imagefolder --data-dir my-photos
    """  # noqa: D301  (click wants the character)
    import json

    from bench.cli.console import show
    from bench.errors import EXIT_SOME_FAILED
    from bench.export.importing.imported import import_network
    from bench.export.importing.tables import network_table, predictions_table

    imported = import_network(file, dataset=dataset, data_dir=data_dir)
    if as_json:
        click.echo(json.dumps(imported.to_json(), indent=1))
    else:
        show([network_table(imported), predictions_table(imported)])
        for fault in imported.faults:
            say(f"bench: {fault}", err=True)
    return EXIT_SOME_FAILED if imported.faults else 0


@click.command()
@click.argument("study", required=False)
@click.option("--flash", default=None, metavar="300KB", help="Memory for the weights.")
@click.option("--ram", default=None, metavar="64KB", help="Memory for the largest input of a layer.")
@click.option("--latency", default=None, metavar="2ms", help="Time for one image, on the simulated accelerator.")
@click.option("--measured", is_flag=True, help="Limit the time that `bench export --measure` found instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def choose(
    study: str | None,
    flash: str | None,
    ram: str | None,
    latency: str | None,
    measured: bool,
    as_json: bool,
    store_dir: Path,
) -> int:
    """Choose the network of a study that fits a device.

    Those that fit are ranked by their accuracy on validation images. The test accuracy is shown for the first one only,
    since nothing may be chosen by it. Without STUDY, the latest study is used. If nothing fits, the exit status is 1.

    \b
    bench choose quick --flash 300KB --ram 32KB --latency 2ms
    """  # noqa: D301  (click wants the character)
    import json
    from dataclasses import asdict

    from bench.cli.console import show
    from bench.errors import EXIT_SOME_FAILED
    from bench.export.choice import Limits, amount, candidates, choice_table
    from bench.outputs.commands import command
    from bench.results.tables import StudyResults
    from bench.store.files import Store

    limits = Limits(
        flash=amount(flash, "flash"), ram=amount(ram, "ram"), latency=amount(latency, "latency"), measured=measured
    )
    store = Store(store_dir)
    found = candidates(StudyResults(store, store.load_study(study)))
    fitting = [candidate for candidate in found if limits.allow(candidate)]
    if as_json:
        rows = [{key: value for key, value in asdict(each).items() if key != "top1"} for each in fitting]
        click.echo(json.dumps({"fitting": rows, "test_top1": fitting[0].top1 if fitting else None}, indent=1))
    elif fitting:
        show([choice_table(fitting)])
        say(f"test Top-1 of the first: {fitting[0].top1:.2f} %")
        say(f"export it: {command('export', fitting[0].run, '--format', 'packed', store=store_dir)}")
    else:
        say(f"none of {len(found)} networks fits; the smallest needs {_least(found)}")
    return 0 if fitting else EXIT_SOME_FAILED


def _least(found: Sequence[Candidate]) -> str:
    """Describe the least that any network of a study needs."""
    if not found:
        return "nothing, as no run has finished"
    flash, ram = (min(getattr(candidate, name) for candidate in found) for name in ("flash", "ram"))
    return f"{flash:.1f} KB of flash, and the one with the smallest inputs {ram:.1f} KB of RAM"
