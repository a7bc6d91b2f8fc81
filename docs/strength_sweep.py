"""Draw how bits of weights, bits of activations and filters fall as λ grows, from searches on real images.

    .venv/bin/python docs/strength_sweep.py                                  # digits, some minutes
    .venv/bin/python docs/strength_sweep.py --dataset cifar100 --data-dir DIR --checkpoint FILE --epochs 1

Each point is one search with plain λ log R (no budget), from one pretrained network. A CSV file beside the figure
has the points.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import altair as alt
import pandas as pd
from torch import Tensor

from bench.compression.policy import Policy, uniform
from bench.costs.counter import price
from bench.execution.task_loader import TaskLoader
from bench.method import SearchJob
from bench.planning.checkpoints import load_checkpoint
from bench.planning.methods import make_method
from bench.reporting.charts import save
from bench.spec.seeds import derive, generator, start_process_deterministically
from bench.spec.sources import build, read_preset, with_schedule
from bench.training.loop import fit

_FOLDER = Path(__file__).resolve().parent / "figures"
_LINES = {
    "weight_bits": "weights, mean bits",
    "activation_bits": "activations, mean bits",
    "eighths": "filters kept, eighths",
}


def arguments() -> argparse.Namespace:
    """Read the task and the strengths from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--low", type=float, default=0.005)
    parser.add_argument("--high", type=float, default=50.0)
    parser.add_argument("--points", type=int, default=13)
    return parser.parse_args()


def pretrained(loader: TaskLoader) -> Mapping[str, Tensor]:
    """Return the state that all searches start from."""
    start_process_deterministically(derive("pretrain"), loader.spec.threads)
    model = loader.task.make_model()
    if loader.spec.task.checkpoint is not None:
        load_checkpoint(model, Path(loader.spec.task.checkpoint), loader.spec.task.model)
    else:
        fit(model, loader.task.data, loader.spec.pretrain, generator("order", "pretrain"), lambda _: None)
    return model.state_dict()


def point(loader: TaskLoader, state: Mapping[str, Tensor], strength: float) -> dict[str, float]:
    """Search once; return mean bits over searched layers, share of filters kept, and cost relative to 8 bits."""
    start_process_deterministically(derive("sweep"), loader.spec.threads)
    network = loader.task.network
    method = make_method("sbs", {})
    result = method.search(
        SearchJob(
            task=loader.task,
            pretrained=state,
            knobs={"strength": strength},
            budget=float(price(network, uniform(network, 8)).bops),
            match="lambda",
            schedule=loader.spec.search,
            seed=0,
            report=lambda _: None,
        )
    )
    return {"strength": strength, **shares(loader, result.policy)}


def shares(loader: TaskLoader, policy: Policy) -> dict[str, float]:
    """Return mean bits of a policy over searched layers, share of filters kept, and cost relative to 8 bits."""
    network = loader.task.network
    chosen = [policy.layers[layer.name] for layer in network.middle]
    prunable = [layer for layer in network.layers if layer.prunable]
    kept = sum(len(policy.layers[layer.name].kept_filters or range(layer.out_channels)) for layer in prunable)
    return {
        "weight_bits": sum(layer.weight_bits for layer in chosen) / len(chosen),
        "activation_bits": sum(layer.activation_bits for layer in chosen) / len(chosen),
        "filters": kept / sum(layer.out_channels for layer in prunable),
        "cost": price(network, policy).bops / price(network, uniform(network, 8)).bops,
    }


def sweep(options: argparse.Namespace) -> tuple[pd.DataFrame, float]:
    """Make all searches; return their points, and the least cost in the search space (relative to 8 bits)."""
    preset = with_schedule(read_preset("quick" if options.dataset == "digits" else "cifar100-short"))
    task = {"dataset": options.dataset, "checkpoint": options.checkpoint}
    asked = {"methods": ["sbs"], "seeds": [0], "device": "cpu", "task": task, "search": {"epochs": options.epochs}}
    spec = build([preset, {**asked, "task": {key: value for key, value in task.items() if value is not None}}])
    loader = TaskLoader(spec, options.data_dir)
    state = pretrained(loader)
    ratio = (options.high / options.low) ** (1 / (options.points - 1))
    rows = []
    for index in range(options.points):
        rows.append(point(loader, state, options.low * ratio**index))
        print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)  # noqa: T201
    cheapest = make_method("sbs", {}).cheapest(loader.task.network)
    least = math.nan if cheapest is None else shares(loader, cheapest)["cost"]
    return pd.DataFrame(rows), least


def draw(points: pd.DataFrame, least: float, title: str) -> alt.TopLevelMixin:
    """Draw bits and filters in the upper part and cost in the lower part, over λ."""
    across = alt.X("strength:Q", title="strength λ", scale=alt.Scale(type="log"))
    named = points.assign(eighths=8 * points["filters"]).rename(columns=_LINES)
    above = (
        alt.Chart(named)
        .transform_fold(list(_LINES.values()), as_=["what", "value"])
        .mark_line(point=True)
        .encode(across, alt.Y("value:Q", title=None), alt.Color("what:N", title=None, sort=None))
        .properties(width=460, height=200, title=title)
    )
    cost = alt.Y("cost:Q", title="cost relative to all-8-bit", scale=alt.Scale(type="log"))
    line = alt.Chart(points).mark_line(point=True, color="#555555").encode(across, cost)
    floor = alt.Chart(pd.DataFrame({"cost": [least]})).mark_rule(strokeDash=[4, 3]).encode(cost)
    return above & (line + floor).properties(width=460, height=140)


def main() -> None:
    """Search, write the points, draw them."""
    options = arguments()
    points, least = sweep(options)
    stem = _FOLDER / f"strength_sweep_{options.dataset}"
    points.to_csv(stem.with_suffix(".csv"), index=False)
    title = f"ResNet-20 on {options.dataset}, SBS, {options.epochs} epochs of search, one seed; dashed: least possible"
    save(draw(points, least, title), stem.with_suffix(".svg"))


if __name__ == "__main__":
    main()
