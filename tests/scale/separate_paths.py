"""Measure multi-path search with a convolution for each path, as the literature states it, and ours with one.

    python -m tests.scale.separate_paths --model resnet20 --widths 1,2,3,4,5 --device cpu

Convolution is linear in both operands, so that one convolution of the mixed input with the mixed weight is the same
function (`methods.multi_path`). The script also measures K convolutions, of each weight with the mixed input, and K²,
of each weight with each input. It prints one line for each, then all figures as JSON. Networks are not compiled.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.diagnostics.speed.config import Candidate, SpeedConfig, head
from bench.diagnostics.speed.growth import CHAINS
from bench.diagnostics.speed.measure import measure
from bench.method import SearchJob, SearchResult
from bench.planning.methods import make_method
from bench.store.machine import resolve_device
from bench.training.forward import Forward
from methods.multi_path import MultiPath, MultiPathOptions
from methods.shared.networks.paths import MixedLayer


class PathPerWeight(MixedLayer):
    """A layer of K convolutions, of each quantized weight with the mixed input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same function as one convolution."""
        of_weights, of_inputs = self.probabilities
        inputs = zip(of_inputs, self.activation_quantizers, strict=True)
        mixed = sum((p * quantizer(x) for p, quantizer in inputs), start=x.new_zeros(()))
        return self.sum_of_paths(of_weights, mixed)

    def sum_of_paths(self, of_weights: Tensor, x: Tensor) -> Tensor:
        """Return the weighted sum of one convolution for each weight."""
        weights = zip(of_weights, self.weight_quantizers, self.weight, strict=True)
        paths = (p * self.geometry.convolve(x, quantizer(w), self.bias) for p, quantizer, w in weights)
        return sum(paths, start=x.new_zeros(()))


class PathPerPair(PathPerWeight):
    """A layer of K² convolutions, of each quantized weight with each quantized input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same function as one convolution."""
        of_weights, of_inputs = self.probabilities
        inputs = zip(of_inputs, self.activation_quantizers, strict=True)
        return sum((p * self.sum_of_paths(of_weights, quantizer(x)) for p, quantizer in inputs), start=x.new_zeros(()))


class _Separated(Forward):
    """A forward that turns the layers of the search's network into separate paths before training."""

    def __init__(self, forward: Forward, layer: type[MixedLayer]) -> None:
        self._forward, self._layer = forward, layer
        self.record = forward.record

    def prepare(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., Any]:
        """The network as it is to be called in training."""
        for module in network.modules():
            if isinstance(module, MixedLayer):
                module.__class__ = self._layer
        return self._forward.prepare(network, stage, multiplications)


class SeparatePaths(MultiPath):
    """Multi-path search with separate convolutions."""

    layer: ClassVar[type[MixedLayer]] = PathPerPair

    def search(self, job: SearchJob) -> SearchResult:
        """Search with the changed layers."""
        return super().search(replace(job, forward=_Separated(job.forward, self.layer)))


class WeightPaths(SeparatePaths):
    """Multi-path search with a convolution for each weight."""

    layer = PathPerWeight


def candidates(widths: list[int]) -> list[Candidate]:
    """Return bit sharing and the three forms of multi-path search, each with a number of candidate bits."""
    found = []
    for chain in (chain for chain in CHAINS if len(chain) in widths):
        methods = {"sbs_q": make_method("sbs_q", {"bits": chain})}
        if len(chain) > 1:
            options = MultiPathOptions(bits=chain)
            methods |= {"1 convolution": MultiPath(options), "K convolutions": WeightPaths(options)}
            methods |= {"K² convolutions": SeparatePaths(options)}
        found += [
            Candidate(name=name, what="search", method=method, detail=",".join(map(str, chain)))
            for name, method in methods.items()
        ]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--widths", default="3", help="numbers of candidate bits, from 1 to 5, separated by commas")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    widths = [int(number) for number in asked.widths.split(",")]
    settings = {name: value for name, value in vars(asked).items() if name not in ("widths", "device")}
    setting = SpeedConfig(**settings, device=resolve_device(asked.device), memory=torch.cuda.is_available())
    found = measure(setting, candidates(widths))
    for row in found.rows:
        print(f"{row.name:<16} {row.detail:<12} × {row.ratio.median:.2f}, saved × {row.saved_ratio:.2f}")  # noqa: T201
    print(json.dumps({**head(setting), "rows": [asdict(row) for row in found.rows]}))  # noqa: T201


if __name__ == "__main__":
    main()
