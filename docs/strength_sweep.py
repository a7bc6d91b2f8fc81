"""Draws how far weights, activations and filters move as λ grows, from searches on real images.

    .venv/bin/python docs/strength_sweep.py                                  digits, some minutes
    .venv/bin/python docs/strength_sweep.py --dataset cifar100 --data-dir DIR --checkpoint FILE --epochs 1

Each point is one search with plain λ log R (no budget), from one pretrained network. The points are kept beside the
figure as CSV.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from bench.costs import price
from bench.execution import Workbench, load_checkpoint
from bench.method import SearchJob
from bench.plan import make_method, make_plan
from bench.policy import Policy, uniform
from bench.seeds import derive, generator, start_process_deterministically
from bench.spec import build, read_preset
from bench.store import Store
from bench.training import fit

_FOLDER = Path(__file__).resolve().parent / "figures"
_COLORS = {"weights": "#0071bc", "activations": "#c1272d", "filters": "#2e8b57", "cost": "#777777"}


def arguments() -> argparse.Namespace:
    """What to search on, and with which strengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--low", type=float, default=0.005)
    parser.add_argument("--high", type=float, default=50.0)
    parser.add_argument("--points", type=int, default=13)
    parser.add_argument("--store", type=Path, default=Path("bench-store"))
    return parser.parse_args()


def pretrained(bench: Workbench) -> Mapping[str, Tensor]:
    """The state that all searches start from."""
    start_process_deterministically(derive("pretrain"), bench.spec.threads)
    model = bench.task.make_model()
    if bench.spec.task.checkpoint is not None:
        load_checkpoint(model, Path(bench.spec.task.checkpoint), bench.spec.task.model)
    else:
        fit(model, bench.task.data, bench.spec.pretrain, generator("order", "pretrain"), lambda _: None)
    return model.state_dict()


def point(bench: Workbench, state: Mapping[str, Tensor], strength: float) -> dict[str, float]:
    """One search: mean widths over searched layers, share of filters kept, cost relative to all-8-bit."""
    start_process_deterministically(derive("sweep"), bench.spec.threads)
    network = bench.task.network
    method = make_method("sbs", {})
    result = method.search(
        SearchJob(
            task=bench.task,
            pretrained=state,
            knobs={"strength": strength},
            budget=float(price(network, uniform(network, 8)).bops),
            match="lambda",
            schedule=bench.spec.search,
            seed=0,
            report=lambda _: None,
        )
    )
    return {"strength": strength, **shares(bench, result.policy)}


def shares(bench: Workbench, policy: Policy) -> dict[str, float]:
    """What a policy comes to."""
    network = bench.task.network
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
    """All searches, and the least cost that the space holds (relative to all-8-bit)."""
    preset = read_preset("quick" if options.dataset == "digits" else "cifar100-short")
    task = {"dataset": options.dataset, "checkpoint": options.checkpoint}
    asked = {"methods": ["sbs"], "seeds": [0], "device": "cpu", "task": task, "search": {"epochs": options.epochs}}
    spec = build([preset, {**asked, "task": {key: value for key, value in task.items() if value is not None}}])
    bench = Workbench(spec, Store(options.store), options.data_dir, make_plan(spec).network)
    state = pretrained(bench)
    ratio = (options.high / options.low) ** (1 / (options.points - 1))
    rows = []
    for index in range(options.points):
        rows.append(point(bench, state, options.low * ratio**index))
        print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)  # noqa: T201
    cheapest = make_method("sbs", {}).cheapest(bench.task.network)
    least = math.nan if cheapest is None else shares(bench, cheapest)["cost"]
    return pd.DataFrame(rows), least


def draw(points: pd.DataFrame, least: float, title: str) -> Figure:
    """Widths and filters above, cost below, over λ."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.plot(points["strength"], points["weight_bits"], "o-", color=_COLORS["weights"], label="weights, mean bits")
    above.plot(
        points["strength"],
        points["activation_bits"],
        "s-",
        color=_COLORS["activations"],
        label="activations, mean bits",
    )
    above.plot(points["strength"], 8 * points["filters"], "^-", color=_COLORS["filters"], label="filters kept, eighths")
    above.set_ylim(0, 8.4)
    above.legend(frameon=False)
    above.set_title(title, loc="left", fontsize=9)
    below.loglog(points["strength"], points["cost"], "D-", color=_COLORS["cost"], label="cost relative to all-8-bit")
    below.axhline(least, color="black", linewidth=0.8, linestyle="--", label="least the space holds")
    below.set_xlabel("strength λ")
    below.legend(frameon=False)
    return figure


def main() -> None:
    """Search, keep the points, draw."""
    options = arguments()
    mpl.rcParams["svg.hashsalt"] = "sbs-bench"
    points, least = sweep(options)
    stem = _FOLDER / f"strength_sweep_{options.dataset}"
    points.to_csv(stem.with_suffix(".csv"), index=False)
    title = f"ResNet-20 on {options.dataset}, SBS, {options.epochs} epochs of search, one seed"
    draw(points, least, title).savefig(stem.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
