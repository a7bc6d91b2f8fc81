"""The common parts of searches by gradients: the network, its preparation, and the result.

A search builds a `SearchNetwork`, prepares it (`prepare`), trains it as its paper says, and reads the result off
(`result_of`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Decision,
    LayerShape,
    NetworkShape,
    Policy,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    UniformQuantizer,
    calibrate,
    evaluate,
    quantized_layer,
    reestimate_norms,
    replace_layer,
)

Layer = TypeVar("Layer", bound=nn.Module)


class SearchNetwork(ABC):
    """A model whose layers and products of activations are searched, except the first and the last layer.

    Attributes:
        network: Shapes of the model.
        model: The model, in which layers keep their names.
        layers: The searched layers by name, in order of execution.
    """

    network: NetworkShape
    model: nn.Module
    layers: Mapping[str, nn.Module]

    @abstractmethod
    def decisions(self) -> Sequence[Decision]:
        """List every choice that repair may change."""

    @abstractmethod
    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions."""

    def state(self, policy: Policy, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy weights and buffers under the names of the float model.

        Args:
            policy: Policy of the search.
            names: State of the float model; only its names are used.
        """
        mine = self.model.state_dict()
        return {name: mine[name].detach().clone() for name in names}

    def clips(self, policy: Policy) -> Mapping[str, float]:
        """Read the clip values of the common quantizer, as `SearchResult.clips`; none by default."""
        return {}

    def learned(self, policy: Policy) -> Mapping[str, Tensor]:
        """Copy the parameters of the method's own quantizers, as `SearchResult.quantizers`; none by default."""
        return {}


def edge_layer(
    module: nn.Module, shape: LayerShape, *, normalized: bool = True, quantizer: QuantizerFactory = UniformQuantizer
) -> nn.Module:
    """Quantize the first or the last layer to 8 bits.

    The pixels of the first layer's input are on an 8-bit grid already.

    Args:
        module: A convolution or a linear layer.
        shape: Shape of the layer.
        normalized: Whether weights that a normalisation follows are standardised.
        quantizer: Factory of the quantizers of weight and input.
    """
    return quantized_layer(module, shape, (EDGE_BITS, EDGE_BITS), quantizer, normalized=normalized)


def replace_layers(
    model: nn.Module,
    network: NetworkShape,
    searched: Callable[[nn.Module, LayerShape, Mapping[str, Layer]], Layer],
    edge: Callable[[nn.Module, LayerShape], nn.Module] = edge_layer,
) -> dict[str, Layer]:
    """Replace every layer of a float model, in order of execution.

    Args:
        model: The float model; it is changed.
        network: Shapes of the model.
        searched: Builds a searched layer from the float one, its shape, and the searched layers before it by name.
        edge: Builds the first and the last layer.

    Returns:
        The searched layers by name.
    """
    layers: dict[str, Layer] = {}
    for shape in network.layers:
        module = model.get_submodule(shape.name)
        if shape.position == "middle":
            layers[shape.name] = searched(module, shape, layers)
        replace_layer(model, shape.name, layers[shape.name] if shape.name in layers else edge(module, shape))
    return layers


def prepare(job: SearchJob, model: nn.Module) -> float:
    """Calibrate all quantizers, then do as `start_accuracy`.

    Returns:
        Top-1 accuracy on the validation images, in percent.
    """
    calibrate_quantizers(job, model)
    return start_accuracy(job, model)


def calibrate_quantizers(job: SearchJob, model: nn.Module) -> None:
    """Set clip values and ranges on one training batch."""
    calibrate(model, job.task.data.calibration_batches(1, job.schedule.batch_size)[0])


def start_accuracy(job: SearchJob, model: nn.Module) -> float:
    """Re-estimate the statistics of all normalisations, then measure the network before its training.

    Returns:
        Top-1 accuracy on the validation images, in percent.
    """
    data = job.task.data
    reestimate_norms(model, data, job.schedule.batch_size)
    return evaluate(model, data, data.validation).top1


def result_of(job: SearchJob, network: SearchNetwork, record: Mapping[str, Any]) -> SearchResult:
    """Read policy, weights and quantizers off a trained network.

    Args:
        job: The search.
        network: The network after its training.
        record: Curves and figures of the search, JSON-serialisable.
    """
    decisions = network.decisions()
    policy = network.policy(decisions)
    return SearchResult(
        policy=policy,
        state=network.state(policy, job.pretrained),
        clips=network.clips(policy),
        quantizers=network.learned(policy),
        decisions=decisions,
        record=dict(record),
    )
