"""The command that prices policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import FILE, data_option
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.compression.policy import Policy
    from bench.compression.shapes import NetworkShape
    from bench.costs.breakdown import CostBreakdown, Difference
    from bench.costs.measures import MeasureName
    from bench.spec.schema import AcceleratorSpec

_TASK = {"model": "resnet20", "dataset": "cifar100"}
"""What is meant where neither an option nor a policy says it."""


@click.command()
@click.option(
    "--model", default=None, help=f"Name of a model, or package.module:function.  [default: {_TASK['model']}]"
)
@click.option("--dataset", default=None, help=f"Name of a data set.  [default: {_TASK['dataset']}]")
@click.option("--bits", type=click.IntRange(1, 32), default=None, help="Uniform precision; 32 is full precision.")
@click.option("--policy", "policy_file", type=FILE, default=None, help="A policy file.")
@click.option("--diff", nargs=2, default=None, metavar="A B", help="Two of: policy files, names such as 4bit.")
@click.option(
    "--by",
    type=click.Choice(["bops", "memory", "latency", "energy"]),
    default=None,
    help="What the bars show, or which difference always.  [default: bops]",
)
@click.option("--hardware", default=None, metavar="NAME|FILE", help="See docs/bitfusion.md.  [default: bf_e]")
@click.option("--batch", type=click.IntRange(1), default=None, help="Images computed together.  [default: 16]")
@click.option("--depthwise", type=click.Choice(["dense", "channelwise"]), default=None, help="[default: dense]")
@click.option("--image-size", type=click.IntRange(8), default=None, help="Side of images, of data sets of files.")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON with exact integers.")
def cost(
    model: str | None,
    dataset: str | None,
    bits: int | None,
    policy_file: Path | None,
    diff: tuple[str, str] | None,
    by: MeasureName | None,
    as_json: bool,
    image_size: int | None,
    data_dir: Path | None,
    **accelerator: Any,
) -> None:
    """Price a policy layer by layer: operations, memory, latency and energy on a simulated accelerator.

    \b
    bench cost --model resnet56 --bits 4
    bench cost --policy policy.json --by latency
    bench cost --diff 4bit policy.json    both, and by how much the second differs
    """  # noqa: D301  (click wants the character)
    import json

    from bench.cli.console import show
    from bench.reporting.cost_tables import table

    if sum(given is not None for given in (bits, policy_file, diff)) != 1:
        raise BenchError(
            "give one of --bits N, --policy FILE and --diff A B, e.g. `bench cost --model resnet20 --bits 4`"
        )
    if as_json and by is not None:
        raise BenchError(f"--by {by} chooses what the table shows; it has no effect with --json")
    task = {"model": model, "dataset": dataset}
    images = {"image_size": image_size, "data_dir": data_dir}
    on = _accelerator(accelerator)
    found = _overall(bits or policy_file, task, images, on) if diff is None else _difference(diff, task, images, on)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        show([table(found, by or "bops")])


def _accelerator(asked: dict[str, Any]) -> AcceleratorSpec:
    from bench.spec.schema import AcceleratorSpec

    return AcceleratorSpec(**{key: value for key, value in asked.items() if value is not None})


def _overall(
    asked: int | Path | None, task: dict[str, str | None], images: dict[str, Any], accelerator: AcceleratorSpec
) -> CostBreakdown:
    from bench.compression.policy import load_policy, uniform
    from bench.costs.breakdown import breakdown

    if isinstance(asked, Path):
        policy = load_policy(asked)
        network = _network([policy], task, images)
    else:
        network = _network([], task, images)
        policy = uniform(network, asked or 0)
    return breakdown(accelerator, network, policy)


def _difference(
    names: tuple[str, str], task: dict[str, str | None], images: dict[str, Any], accelerator: AcceleratorSpec
) -> Difference:
    from bench.compression.policy import Policy
    from bench.costs.breakdown import Difference, chosen, side

    choices = [chosen(name) for name in names]
    policies = [choice for choice in choices if isinstance(choice, Policy)]
    tasks = list(dict.fromkeys(f"{policy.model} on {policy.dataset}" for policy in policies))
    if len(tasks) > 1:
        raise BenchError(
            f"--diff: '{names[0]}' is for {tasks[0]}, '{names[1]}' for {tasks[1]}; both must be for the same"
        )
    network = _network(policies, task, images)
    first, second = (side(name, network, choice, accelerator) for name, choice in zip(names, choices, strict=True))
    return Difference(first=first, second=second)


def _network(policies: list[Policy], task: dict[str, str | None], images: dict[str, Any]) -> NetworkShape:
    """The shapes of what policies are for, or of what is asked for where there are none.

    Raises:
        BenchError: Both say something, and not the same.
    """
    from bench.planning.plan import model_shape

    found = dict(_TASK)
    for key, asked in task.items():
        stated = getattr(policies[0], key) if policies else None
        if None not in (stated, asked) and stated != asked:
            raise BenchError(f"--{key} {asked} contradicts the policy, which is for {stated}; leave it out")
        found[key] = stated or asked or found[key]
    return model_shape(found["model"], found["dataset"], **images)
