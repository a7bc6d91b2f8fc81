"""Verification of exported networks: image by image on the test split, against the network of the harness.

Predictions must be equal. There is no tolerance on logits: float32 and float64 of one network may round a number very
near the middle between two codes in different directions, and such a code changes later sums by whole units. So another
prediction is accepted only if it is traced to this cause: the first codes that differ in the image, in the order of
execution, differ by one, and the harness's own number lies nearly half-way between the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data.subset import Subset
from bench.export.engines import Codes, Engine
from bench.export.graph.operations import Graph, Quantize
from bench.training.loop import evaluating

Array = NDArray[Any]

_NEAR = 1e-3
"""Largest distance from the middle between two codes, in steps, that rounding errors of float32 bridge."""
_NEAR_LOGITS = 1e-4
"""Largest difference of two logits, relative to the largest one, that rounding errors of float32 bridge."""
_BATCH, _BATCH_CODES = 100, 1 << 24
"""Largest numbers of images, and of codes, that are compared at once."""


@dataclass(kw_only=True)
class Agreement:
    """Agreement of an exported network with that of the harness on the test split.

    Attributes:
        form: Form of the network.
        engine, version: Engine that executed it.
        promised: Whether the form promises equal predictions in this engine.
        images: Number of images.
        equal: Images with the same prediction.
        traced: Images with another prediction that was traced to a number nearly half-way between two codes.
        correct: Images whose label was predicted.
        codes: Number of codes compared.
        codes_differing: Codes that differ.
        largest_logit_difference: Largest difference of two logits.
        differing: Classes that were predicted instead of the harness's, by the numbers of the images.
    """

    form: str
    engine: str
    version: str
    promised: bool
    images: int = 0
    equal: int = 0
    traced: int = 0
    correct: int = 0
    codes: int = 0
    codes_differing: int = 0
    largest_logit_difference: float = 0.0
    differing: dict[str, int] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Top-1 in percent."""
        return 100 * self.correct / max(1, self.images)

    @property
    def broken(self) -> bool:
        """Whether a promise is broken: a prediction differs, and near ties do not explain it."""
        return self.promised and self.equal + self.traced < self.images

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `export.json`."""
        return {**asdict(self), "top1": self.top1, "broken": self.broken}


@dataclass(kw_only=True)
class Verification:
    """Comparison of exported networks with that of the harness.

    Attributes:
        agreements: One agreement for each engine.
        predictions: Classes that the harness's network predicts for all images.
        correct: Images whose label it predicts.
    """

    agreements: list[Agreement]
    predictions: list[int] = field(default_factory=list)
    correct: int = 0

    @property
    def top1(self) -> float:
        """Top-1 of the harness's network in percent."""
        return 100 * self.correct / max(1, len(self.predictions))


def equal_predictions(entry: Mapping[str, Any]) -> str:
    """Return how many predictions of an engine are equal, in words."""
    words = f"{entry['equal']}/{entry['images']}"
    if entry["traced"]:
        words += f", {entry['traced']} near ties"
    return f"{words}, BROKEN" if entry["broken"] else words


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the harness's network computes for a batch.

    Attributes:
        logits: Logits (N, classes).
        codes: Codes of every layer's input, by the name of the quantizer.
        positions: The same before rounding, in steps.
    """

    logits: Array
    codes: Codes
    positions: Mapping[str, Array]


@dataclass
class _Watched:
    """Hooks that keep what quantizers read and return."""

    quantizers: Sequence[Quantize]
    codes: dict[str, Array] = field(default_factory=dict)
    positions: dict[str, Array] = field(default_factory=dict)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        handles = [
            network.get_submodule(quantizer.module).register_forward_hook(self._hook(quantizer))
            for quantizer in self.quantizers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, quantizer: Quantize) -> Any:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], values: Tensor) -> None:
            codes = (values.double() - quantizer.offset) / quantizer.step
            positions = (inputs[0].double() - quantizer.offset) / quantizer.step
            self.codes[quantizer.name] = codes.round().to(torch.uint8).numpy()
            self.positions[quantizer.name] = positions.clamp(0, quantizer.levels).numpy()

        return keep


@torch.no_grad()
def observe(network: nn.Module, graph: Graph, images: Tensor) -> Observed:
    """Run the harness's network on normalised images, and note codes and numbers before rounding."""
    watched = _Watched(graph.quantizers)
    with evaluating(network), watched.watching(network):
        logits = network(images).numpy()
    return Observed(logits=logits, codes=watched.codes, positions=watched.positions)


def verify(
    network: nn.Module, graph: Graph, images: Subset, engines: Sequence[tuple[str, Engine, bool]]
) -> Verification:
    """Compare exported networks with that of the harness on all images of a part of the data.

    Args:
        network: The harness's network, on the CPU.
        graph: Graph of the network.
        images: Images, with one label each.
        engines: Forms, engines that execute them, and whether equal predictions are promised.
    """
    result = Verification(
        agreements=[
            Agreement(form=form, engine=engine.name, version=engine.version, promised=promised)
            for form, engine, promised in engines
        ]
    )
    for batch, labels in images.unchanged(_batch_size(graph)):
        observed = observe(network, graph, normalized(graph, batch))
        pixels = np.ascontiguousarray(batch.numpy())
        for agreement, (_, engine, _) in zip(result.agreements, engines, strict=True):
            logits, codes = engine.run(pixels)
            _count(agreement, observed, logits, codes, labels.numpy(), graph)
        predictions = observed.logits.argmax(axis=1)
        result.predictions += predictions.tolist()
        result.correct += int((predictions == labels.numpy()).sum())
    return result


def _batch_size(graph: Graph) -> int:
    """Return how many images fit into memory, with all codes and the windows of any layer."""
    codes = sum(int(np.prod(quantizer.shape)) for quantizer in graph.quantizers)
    windows = max(layer.window_elements for layer in graph.layers)
    return max(1, min(_BATCH, _BATCH_CODES // max(codes, windows)))


def normalized(graph: Graph, images: Tensor) -> Tensor:
    """Normalise `uint8` images as `TaskData.normalize` does."""
    floats = images.to(torch.float32, memory_format=torch.channels_last)
    mean, std = (torch.from_numpy(values).float().view(-1, 1, 1) for values in (graph.mean, graph.std))
    return floats.sub_(mean).div_(std)


def _count(result: Agreement, observed: Observed, logits: Array, codes: Codes, labels: Array, graph: Graph) -> None:
    """Add a batch to an agreement."""
    expected, predicted = observed.logits.argmax(axis=1), logits.argmax(axis=1)
    first = result.images
    result.images += len(labels)
    result.equal += int((predicted == expected).sum())
    result.correct += int((predicted == labels).sum())
    result.codes += sum(values.size for values in codes.values())
    result.codes_differing += sum(int((codes[name] != values).sum()) for name, values in observed.codes.items())
    difference = float(np.abs(logits - observed.logits).max())
    result.largest_logit_difference = max(result.largest_logit_difference, difference)
    for image in np.flatnonzero(predicted != expected):
        result.differing[str(first + image)] = int(predicted[image])
        result.traced += is_near_tie(observed, int(image), int(predicted[image]), codes, graph.quantizers)


def is_near_tie(observed: Observed, image: int, predicted: int, codes: Codes, quantizers: Sequence[Quantize]) -> bool:
    """Whether rounding errors of float32 explain another prediction for an image.

    Args:
        observed: Logits and codes that the harness's network computes.
        image: Number of the image in the batch.
        predicted: Class that was predicted instead of the harness's.
        codes: Codes of the exported network.
        quantizers: Quantizers in the order of execution.
    """
    for quantizer in quantizers:
        ours, theirs = (side[quantizer.name][image].astype(np.int64) for side in (observed.codes, codes))
        differing = ours != theirs
        if differing.any():
            middle = np.minimum(ours, theirs)[differing] + 0.5
            distance = np.abs(observed.positions[quantizer.name][image][differing] - middle)
            return bool((np.abs(ours - theirs).max() == 1) & (distance < _NEAR).all())
    logits = observed.logits[image]
    return bool(logits.max() - logits[predicted] <= _NEAR_LOGITS * np.abs(logits).max())
