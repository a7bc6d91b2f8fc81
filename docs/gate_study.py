"""Measure how the loss rises when one gate of SBS closes, and compare signals that might predict this.

    .venv/bin/python docs/gate_study.py --data-dir DIR            # about ten minutes on one core

The network is ResNet-20 on CIFAR-100, at the start of a search. The loss of each tensor is taken at each of its
candidates for the bits, once with all other tensors at their most bits and once at their fewest. The rise from one
candidate to the one below is the effect of closing that gate. It is compared with

* the rise that the task's gradient on the gate predicts to first order, while the gate is open and while it is shut;
* the gate's metric. SBS closes gates in the order of metric over share of the cost;
* the rise that HAWQ estimates from the Hessian.

The script writes the points as CSV and a figure to `docs/results/gates`, and rank correlations to
`docs/results/earlier.md`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import altair as alt
import pandas as pd
import torch
import torch.nn.functional as F
from make_results import fill_in, markdown
from torch import Tensor

from bench.compression.compress import calibrate
from bench.execution.task_loader import TaskLoader
from bench.method import SearchJob
from bench.planning.checkpoints import load_checkpoint
from bench.reporting.charts import save
from bench.reporting.report import Column, Document, Section, Table
from bench.spec.seeds import derive, start_process_deterministically
from bench.spec.sources import build, read_toml
from bench.training.loop import reestimate_norms
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.bit_sharing.options import SbsOptions, search_space
from methods.shared.bit_sharing.quantizer import SharedQuantizer
from methods.shared.decisions import What
from methods.shared.gates import surrogate_slope
from methods.shared.hessian import hutchinson, loss_graph, sensitivity

_RESULTS = Path(__file__).resolve().parent / "results"
_CHAIN = (2, 4, 8)
_MARGIN = 0.05
"""Distance of a gate's threshold from its metric; metrics of activations vary by less from batch to batch."""
_DRAWS = 50
_SIGNALS = {
    "from_open": "gradient, open gate",
    "from_shut": "gradient, shut gate",
    "metric": "metric",
    "hessian": "Hessian",
}
_TENSORS: dict[What, str] = {"weight_bits": "weights", "activation_bits": "activations"}


@dataclass(frozen=True)
class _Tensor:
    """One searched tensor.

    Attributes:
        layer: Name of the layer.
        what: Weights or activations.
        quantizer: Quantizer with the gates.
        metric: Calibrated metrics of its gates, shape (K − 1,).
    """

    layer: str
    what: What
    quantizer: SharedQuantizer
    metric: Tensor

    @property
    def thresholds(self) -> Tensor:
        """Thresholds α of its gates, shape (K − 1,)."""
        return self.quantizer.thresholds

    @torch.no_grad()
    def choose(self, candidate: int) -> None:
        """Open the gates up to a candidate and shut the others."""
        shut = torch.arange(len(self.metric), device=self.metric.device) >= candidate
        self.thresholds.copy_(self.metric + torch.where(shut, _MARGIN, -_MARGIN))


@dataclass(frozen=True)
class _Point:
    """Loss with one tensor at one candidate, and dL/dg of its gates, shape (K − 1,)."""

    loss: float
    gradient: Tensor


class Probe:
    """The network at the start of a search, and fixed batches.

    Args:
        task_loader: Task and schedule.
        batches: Number of training batches for the loss. Normalisation uses their own statistics, as in a search.
    """

    def __init__(self, task_loader: TaskLoader, batches: int) -> None:
        start_process_deterministically(derive("gate study"), task_loader.spec.threads)
        state = task_loader.task.make_model()
        load_checkpoint(state, Path(str(task_loader.spec.task.checkpoint)), task_loader.spec.task.model)
        self.job = SearchJob(
            task=task_loader.task,
            pretrained=state.state_dict(),
            knobs={},
            budget=float("inf"),
            match="hinge",
            schedule=task_loader.spec.search,
            seed=0,
            report=lambda _: None,
        )
        size = task_loader.spec.search.batch_size
        loader = task_loader.task.data.training_batches(size, self.job.order("gates"))
        self.batches = [batch for batch, _ in zip(loader, range(batches), strict=False)]
        self.network = self._network(size)
        self.tensors = list(self._tensors())

    def _network(self, batch_size: int) -> SharedNetwork:
        options = SbsOptions(bits=_CHAIN)
        space = search_space(self.job.task.network, options, prune=False)
        network = SharedNetwork(self.job, space, options.layer_settings(), Start(state=self.job.pretrained, clips={}))
        calibrate(network.model, self.batches[0][0])
        reestimate_norms(network.model, self.job.task.data, batch_size)
        network.model.train()
        return network

    def _tensors(self) -> Iterator[_Tensor]:
        layers = self.network.layers
        sums = {name: torch.zeros_like(layer.activation_quantizer.thresholds) for name, layer in layers.items()}
        with torch.no_grad():
            for images, _ in self.batches:
                self.network.model(images)
                for name, layer in layers.items():
                    sums[name] += layer.activation_quantizer.metric
        for name, layer in layers.items():
            yield _Tensor(name, "weight_bits", layer.weight_quantizer, layer.weight_quantizer.metric.detach())
            metric = sums[name].detach() / len(self.batches)
            yield _Tensor(name, "activation_bits", layer.activation_quantizer, metric)

    def at(self, tensor: _Tensor, candidate: int, base: int) -> _Point:
        """Return the loss with one tensor at a candidate and all others at a base candidate."""
        for other in self.tensors:
            other.choose(base)
        tensor.choose(candidate)
        loss, gradient = 0.0, torch.zeros_like(tensor.metric)
        for images, labels in self.batches:
            of_batch = F.cross_entropy(self.network.model(images), labels)
            (of_threshold,) = torch.autograd.grad(of_batch, [tensor.thresholds])
            loss += of_batch.item() / len(self.batches)
            gradient += of_threshold / len(self.batches)
        return _Point(loss, -gradient / surrogate_slope(tensor.metric - tensor.thresholds.detach()))

    def hessian(self) -> dict[tuple[str, What], list[float]]:
        """Return the rise that HAWQ estimates for closing each gate, by layer and tensor."""
        graph = loss_graph(self.job, 128)
        traces = hutchinson(graph, self.job.noise("signs"), _DRAWS, 1e-3)
        omega = sensitivity(self.job.task.network, graph.tensors, traces, _CHAIN)
        return {key: [low - high for low, high in pairwise(values)] for key, values in omega.items()}

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield one row for each gate with the others open, and one with the others shut."""
        hessian = self.hessian()
        for base, others in ((len(_CHAIN) - 1, "open"), (0, "shut")):
            for tensor in self.tensors:
                points = [self.at(tensor, candidate, base) for candidate in range(len(_CHAIN))]
                for level, (shut, opened) in enumerate(pairwise(points)):
                    yield {
                        "others": others,
                        "layer": tensor.layer,
                        "tensor": _TENSORS[tensor.what],
                        "gate": f"{_CHAIN[level + 1]} to {_CHAIN[level]} bit",
                        "rise": shut.loss - opened.loss,
                        "from_open": -opened.gradient[level].item(),
                        "from_shut": -shut.gradient[level].item(),
                        "metric": tensor.metric[level].item(),
                        "hessian": hessian[tensor.layer, tensor.what][level],
                    }
                print(others, tensor.layer, tensor.what, flush=True)  # noqa: T201


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's ρ of every signal with the rise, over the tensors of one kind and over all."""
    from scipy.stats import spearmanr

    everything = points.assign(tensor="all")
    rows = []
    for (others, gate, tensor), group in pd.concat([points, everything]).groupby(["others", "gate", "tensor"]):
        of_signals = {title: spearmanr(group[key], group["rise"]).statistic for key, title in _SIGNALS.items()}
        rows.append({"Other gates": others, "Gate": gate, "Tensors": tensor, "n": len(group), **of_signals})
    return pd.DataFrame(rows)


def draw(points: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw three signals over the rise of the loss, for gates from 4 to 2 bit; an exact gradient is on the line."""
    lowest = points[points["gate"] == f"{_CHAIN[1]} to {_CHAIN[0]} bit"]
    rows = [
        alt.hconcat(*[_panel(group, signal, others) for others, group in lowest.groupby("others")])
        for signal in ("from_open", "from_shut", "metric")
    ]
    return alt.vconcat(*rows)


def _panel(points: pd.DataFrame, signal: str, others: str) -> alt.LayerChart:
    dots = (
        alt.Chart(points)
        .mark_point(size=30, filled=True, opacity=0.8)
        .encode(
            alt.X("rise:Q", title=f"rise of the loss when the gate closes, others {others}"),
            alt.Y(f"{signal}:Q", title=_SIGNALS[signal]),
            alt.Color("tensor:N", title=None),
            alt.Shape("tensor:N", title=None),
        )
    )
    ends = [float(points["rise"].min()), float(points["rise"].max())]
    line = alt.Chart(pd.DataFrame({"rise": ends, signal: ends})).mark_line(strokeDash=[4, 3], color="#777777")
    layers = [dots] if signal == "metric" else [line.encode(x="rise:Q", y=f"{signal}:Q"), dots]
    return alt.layer(*layers).properties(width=300, height=150)


def table(measured: pd.DataFrame) -> Document:
    """Return the correlations as a table of the project."""
    numbers = [*_SIGNALS.values()]
    columns = [Column(title=title, align="right" if title in ("n", *numbers) else "left") for title in measured.columns]
    rows = [
        tuple(f"{value:+.2f}" if title in numbers else str(value) for title, value in row.items())
        for row in measured.to_dict("records")
    ]
    part = Table(name="gates", title="gates: rank correlations", columns=tuple(columns), rows=tuple(rows))
    return Document(study="gates", sections=(Section(name="gates", title="", parts=(part,)),))


def main() -> None:
    """Measure, write the points, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=_RESULTS / "evidence.toml")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    spec = build([read_toml(options.spec)])
    task_loader = TaskLoader(spec, options.data_dir)
    points = pd.DataFrame(Probe(task_loader, options.batches).rows())
    folder = _RESULTS / "gates"
    folder.mkdir(exist_ok=True)
    points.to_csv(folder / "gates.csv", index=False, float_format="%.6g")
    fill_in("gates", markdown(table(correlations(points))))
    save(draw(points), folder / "gradients.svg")


if __name__ == "__main__":
    main()
