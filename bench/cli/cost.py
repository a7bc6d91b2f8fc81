"""The command `bench cost`, which prices policies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import FILE, WholeNumber, data_option, store_option
from bench.errors import BenchError
from bench.outputs.terminal import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.compression.policy import Policy
    from bench.compression.shapes import NetworkShape
    from bench.costs.breakdown import CostBreakdown, Difference
    from bench.costs.measures import MeasureName
    from bench.export.measurement import MeasuredTime
    from bench.export.untrained import UntrainedNetwork
    from bench.reporting.report import Table
    from bench.spec.schema import AcceleratorSpec

_TASK = {"model": "resnet20", "dataset": "cifar100"}
"""Model and data set when neither an option nor a policy names them."""


@click.command()
@click.option(
    "--model", default=None, help=f"Name of a model, or package.module:function.  [default: {_TASK['model']}]"
)
@click.option("--dataset", default=None, help=f"Name of a data set.  [default: {_TASK['dataset']}]")
@click.option("--bits", type=WholeNumber(1, 32), default=None, help="Bits of a uniform policy; 32 is full precision.")
@click.option("--policy", "policy_file", type=FILE, default=None, help="File with a policy.")
@click.option("--diff", nargs=2, default=None, metavar="A B", help="Two policies: files, or names such as 4bit.")
@click.option(
    "--by",
    type=click.Choice(["bops", "memory", "latency", "energy"]),
    default=None,
    help="Measure that the bars show; with --diff, the measure that is never dropped.  [default: bops]",
)
@click.option(
    "--hardware",
    default=None,
    metavar="NAME|FILE",
    help="Simulated accelerator, see docs/bitfusion.md; or onnxruntime or openvino, of which times for layers are "
    "measured here, or a file with such times.  [default: bf_e]",
)
@click.option(
    "--batch",
    type=WholeNumber(1),
    default=None,
    help="Images that are computed together.  [default: 16, or 1 where times are measured]",
)
@click.option(
    "--depthwise",
    type=click.Choice(["dense", "channelwise"]),
    default=None,
    help="Mapping of depthwise convolutions to the accelerator.  [default: dense]",
)
@click.option(
    "--image-size", type=WholeNumber(8), default=None, help="Side of the images in pixels, for image folders."
)
@data_option
@click.option(
    "--measured",
    is_flag=True,
    help="Also measure on this machine how long the network takes in ONNX forms, with random weights.",
)
@store_option
@click.option(
    "--long", "long_form", is_flag=True, help="Also show which layers may lose filters, and why others may not."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with exact integers.")
def cost(
    model: str | None,
    dataset: str | None,
    bits: int | None,
    policy_file: Path | None,
    diff: tuple[str, str] | None,
    by: MeasureName | None,
    as_json: bool,
    long_form: bool,
    measured: bool,
    image_size: int | None,
    data_dir: Path | None,
    store_dir: Path,
    **accelerator: Any,
) -> None:
    """Price a policy layer by layer.

    The output shows operations, memory, and latency and energy on a simulated accelerator.

    \b
    bench cost --model resnet56 --bits 4
    bench cost --policy policy.json --by latency
    bench cost --policy policy.json --hardware onnxruntime    latency by layers that are measured here, once
    bench cost --policy policy.json --measured    also the time that it takes here, beside the float network's
    bench cost --diff 4bit policy.json    two policies, and how much more the second costs
    """  # noqa: D301  (click wants the character)
    import json
    from dataclasses import asdict

    from bench.cli.console import show
    from bench.costs.breakdown import CostBreakdown

    _check_choices(bits, policy_file, diff, by=by, as_json=as_json, long_form=long_form, measured=measured)
    task = {"model": model, "dataset": dataset}
    images = {"image_size": image_size, "data_dir": data_dir}
    spec = _accelerator(accelerator)

    def on(network: NetworkShape) -> AcceleratorSpec:
        return _with_measured_times(spec, network, images, store_dir)

    costs = _breakdown(bits or policy_file, task, images, on) if diff is None else _difference(diff, task, images, on)
    times = _measured_times(costs, images) if measured and isinstance(costs, CostBreakdown) else None
    if as_json:
        further = {} if times is None else {"measured": [asdict(time) for time in times]}
        click.echo(json.dumps(costs.to_json() | further, indent=1))
        return
    show(_tables(costs, by or "bops", times, long_form=long_form))


def _check_choices(
    bits: int | None,
    policy_file: Path | None,
    diff: tuple[str, str] | None,
    *,
    by: MeasureName | None,
    as_json: bool,
    long_form: bool,
    measured: bool,
) -> None:
    """Refuse options that contradict each other or have no effect."""
    if sum(given is not None for given in (bits, policy_file, diff)) != 1:
        raise BenchError(
            "give one of --bits N, --policy FILE and --diff A B, e.g. `bench cost --model resnet20 --bits 4`"
        )
    if as_json and by is not None:
        raise BenchError(f"--by {by} chooses what the table shows; it has no effect with --json")
    if long_form and (as_json or diff is not None):
        raise BenchError(f"--long adds a table for one policy; leave it out with {'--json' if as_json else '--diff'}")
    if measured and diff is not None:
        raise BenchError("--measured times the network of one policy; leave it out with --diff")


def _tables(
    costs: CostBreakdown | Difference, by: MeasureName, times: list[MeasuredTime] | None, *, long_form: bool
) -> list[Table]:
    """Make the tables: the layers, which of them may lose filters, and measured times, as far as they are wanted."""
    from bench.costs.breakdown import CostBreakdown
    from bench.reporting.cost_tables import filters_table, table

    tables = [table(costs, by)]
    if long_form and isinstance(costs, CostBreakdown):
        tables.append(filters_table(costs.network))
    if times is not None:
        from bench.export.tables import policy_time_table

        tables.append(policy_time_table(times))
    return tables


def _measured_times(costs: CostBreakdown, images: dict[str, Any]) -> list[MeasuredTime]:
    from bench.export.measurement import measured_policy

    return measured_policy(_untrained(costs.network, images), costs.policy)


def _with_measured_times(
    spec: AcceleratorSpec, network: NetworkShape, images: dict[str, Any], store_dir: Path
) -> AcceleratorSpec:
    """Put a table of measured times in the place of the name of a runtime."""
    from bench.spec.schema import ENGINES

    if spec.hardware not in ENGINES:
        return spec
    from bench.export.layer_times import measured_times
    from bench.store.files import Store

    subjects = [_untrained(network, images)]
    path = measured_times(spec.hardware, subjects, spec.batch, Store(store_dir), partial(say, err=True))
    return spec.model_copy(update={"hardware": str(path)})


def _untrained(network: NetworkShape, images: dict[str, Any]) -> UntrainedNetwork:
    from bench.export.untrained import untrained_network
    from bench.plugins.registry import load

    return untrained_network(network, load("datasets", network.dataset).described(**images))


def _accelerator(options: dict[str, Any]) -> AcceleratorSpec:
    from pydantic import ValidationError

    from bench.spec.options import explain
    from bench.spec.schema import AcceleratorSpec

    try:
        return AcceleratorSpec(**{key: value for key, value in options.items() if value is not None})
    except ValidationError as error:
        raise explain(error, "accelerator", AcceleratorSpec) from error


def _breakdown(
    choice: int | Path | None,
    task: dict[str, str | None],
    images: dict[str, Any],
    on: Callable[[NetworkShape], AcceleratorSpec],
) -> CostBreakdown:
    from bench.compression.policy import load_policy
    from bench.interface.pricing import price

    policy = load_policy(choice) if isinstance(choice, Path) else choice or 0
    network = _network([] if isinstance(policy, int) else [policy], task, images)
    return price(network, policy, **on(network).model_dump())


def _difference(
    names: tuple[str, str],
    task: dict[str, str | None],
    images: dict[str, Any],
    on: Callable[[NetworkShape], AcceleratorSpec],
) -> Difference:
    from bench.compression.policy import Policy
    from bench.costs.breakdown import Difference, policy_or_bits, side

    choices = [policy_or_bits(name) for name in names]
    policies = [choice for choice in choices if isinstance(choice, Policy)]
    tasks = list(dict.fromkeys(f"{policy.model} on {policy.dataset}" for policy in policies))
    if len(tasks) > 1:
        raise BenchError(
            f"--diff: '{names[0]}' is for {tasks[0]}, '{names[1]}' for {tasks[1]}; both must be for the same"
        )
    network = _network(policies, task, images)
    accelerator = on(network)
    first, second = (side(name, network, choice, accelerator) for name, choice in zip(names, choices, strict=True))
    return Difference(first=first, second=second)


def _network(policies: list[Policy], options: dict[str, str | None], images: dict[str, Any]) -> NetworkShape:
    """Return the shapes of the network that the policies are for; without policies, of the one in the options.

    Raises:
        BenchError: An option contradicts the policies.
    """
    from bench.interface.pricing import network_of

    task = dict(_TASK)
    for key, option in options.items():
        stated = getattr(policies[0], key) if policies else None
        if None not in (stated, option) and stated != option:
            raise BenchError(f"--{key} {option} contradicts the policy, which is for {stated}; leave it out")
        task[key] = stated or option or task[key]
    return network_of(task["model"], task["dataset"], **images)
