"""Networks with random weights: the time of a network depends on its policy, and hardly on its weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import Policy
from bench.compression.shapes import NetworkShape
from bench.data.dataset import Dataset
from bench.export.graph.operations import Graph
from bench.export.graph.reading import Pixels, read_graph
from bench.models.build import build_model

_IMAGES = 2
"""Images of random pixels on which clip values are calibrated."""


@dataclass(frozen=True)
class UntrainedNetwork:
    """A network with random weights, from which compressed networks of any policy are made.

    Attributes:
        model: Float model.
        shape: Shapes of its layers.
        pixels: Shape and normalisation of its images.
    """

    model: nn.Module
    shape: NetworkShape
    pixels: Pixels

    def graph(self, policy: Policy) -> Graph:
        """Return the graph of the compressed network of a policy.

        Raises:
            BenchError: The policy does not fit the network, or the network cannot be exported.
        """
        network = compress(self.model, self.shape, policy).eval()
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (_IMAGES, *self.pixels.image_shape), generator=draw)
        calibrate(network, (images - _by_channel(self.pixels.pixel_mean)) / _by_channel(self.pixels.pixel_std))
        return read_graph(network, self.pixels, model=self.shape.model, dataset=self.shape.dataset)

    def full_graph(self, policy: Policy) -> Graph:
        """Return the graph of a policy's network with all filters."""
        layers = {name: replace(layer, kept_filters=None) for name, layer in policy.layers.items()}
        return self.graph(replace(policy, layers=layers))


def untrained_network(shape: NetworkShape, images: Dataset) -> UntrainedNetwork:
    """Build a model for the images of a data set, none of which is read.

    Args:
        shape: Shapes of the model on these images.
        images: Data set.
    """
    return UntrainedNetwork(
        build_model(shape.model, images.image_shape, images.num_classes), shape, _DatasetPixels(images)
    )


class _DatasetPixels:
    """Shape and normalisation of a data set's images, in the units of `TaskData`."""

    def __init__(self, dataset: Dataset) -> None:
        self.image_shape = dataset.image_shape
        self.pixel_mean, self.pixel_std = (255 * torch.tensor(values) for values in (dataset.mean, dataset.std))


def _by_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
