"""Losses of the pretrained network under many policies, without training.

All quantizers that the policies need are calibrated once, on the calibration batch of every search. Then a policy only
picks among them, so that losses differ by what their policies differ in, and by nothing else: all of them are of the
same images, and quantizers of the same bits are the same.

A pass repeats only what differs. Policies are evaluated in the order in which two that follow each other agree in as
many of the first layers as possible. A layer for which all bits up to its own are as before gives the output that it
gave before.

Normalisations use the statistics of each batch, since standardised weights change the scale of a layer. Nothing is left
out at random, as dropout would: its noise would be larger than the rise that one tensor causes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.api import (
    FULL_PRECISION_BITS,
    LayerShape,
    Policy,
    QuantizedLayer,
    QuantizedProduct,
    SearchJob,
    UniformQuantizer,
    calibrate,
    compress,
    generator,
    quantized_layer,
    replace_layer,
)
from methods.shared.decisions import What

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images with their labels."""

_Choice = tuple[int, int]
"""Bits of a layer's weights and of its input."""


def sensitivity_batches(job: SearchJob, count: int) -> Batches:
    """Draw the training batches that all networks see."""
    order = generator("sensitivity", job.seed)
    stream = job.task.data.training_batches(job.schedule.batch_size, order, purpose="calibration")
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


class _Remembering(nn.Module):
    """A quantized layer that can give its last output again.

    Args:
        layer: The quantized layer or product.

    Attributes:
        repeating: Whether the next pass gives the last output.
        output: The last output; `None` before the first one.
    """

    def __init__(self, layer: QuantizedLayer | QuantizedProduct) -> None:
        super().__init__()
        self.layer = layer
        self.repeating = False
        self.output: Tensor | None = None

    def forward(self, *operands: Tensor) -> Tensor:
        """Apply the layer, or give its last output."""
        if self.output is None or not self.repeating:
            self.output = self.layer(*operands)
        # What follows may change the tensor that it is given, as an activation that works in place does.
        return self.output.clone()


class PolicyLosses:
    """Measures the mean cross-entropy of the pretrained network under policies, on the same batches.

    Args:
        job: Model, weights and calibration batch.
        base: Policy at which quantizers are calibrated. The first and the last layer stay at its bits.
        bits: Bits that the policies have, in any order.
        batches: Images on which losses are measured.
    """

    def __init__(self, job: SearchJob, base: Policy, bits: Sequence[int], batches: Batches) -> None:
        self._batches, self._device = batches, job.task.device
        self._shapes = job.task.network.middle
        at_edges = base
        for shape in self._shapes:
            at_edges = at_edges.with_layer(
                shape.name, weight_bits=FULL_PRECISION_BITS, activation_bits=FULL_PRECISION_BITS
            )
        self._model = compress(job.float_model(), job.task.network, at_edges)
        self._originals = {shape.name: self._model.get_submodule(shape.name) for shape in self._shapes}
        self._layers = {shape.name: self._remembering(shape, base) for shape in self._shapes}
        images = job.task.data.calibration_batches(1, job.schedule.batch_size)[0]
        calibrate(self._model, images)
        self._measuring()
        of_base = {width for choice in self._choices(base) for width in choice}
        self._quantizers = self._calibrated(images, sorted({*bits, *of_base}))

    def of(self, policies: Sequence[Policy]) -> list[float]:
        """Measure the mean cross-entropy under each of some policies, which keep all filters."""
        choices = [self._choices(policy) for policy in policies]
        order = sorted(range(len(choices)), key=choices.__getitem__)
        totals = torch.zeros(len(choices), dtype=torch.float64, device=self._device)
        for images, labels in self._batches:
            last: Sequence[_Choice] = ()
            for index in order:
                self._switch(choices[index], last)
                last = choices[index]
                totals[index] += self._loss(images, labels)
            self._forget()
        return [total / len(self._batches) for total in totals.tolist()]

    def _remembering(self, shape: LayerShape, base: Policy) -> _Remembering:
        """Put the quantized form of a layer, at the bits of the base policy, in its place."""
        choice = base.layers[shape.name]
        layer = _Remembering(self._quantized(shape, (choice.weight_bits, choice.activation_bits)))
        replace_layer(self._model, shape.name, layer)
        return layer

    def _quantized(self, shape: LayerShape, bits: _Choice) -> QuantizedLayer | QuantizedProduct:
        """Make the quantized form of a layer."""
        return quantized_layer(self._originals[shape.name], shape, bits, UniformQuantizer, normalized=True)

    def _measuring(self) -> None:
        """Set the mode in which losses are measured."""
        self._model.eval()
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()

    @torch.no_grad()
    def _calibrated(self, images: Tensor, bits: Sequence[int]) -> dict[tuple[str, What, int], nn.Module]:
        """Make the quantizers of every tensor at some bits, calibrated on what layers read in the base."""
        made: dict[tuple[str, What, int], nn.Module] = {}

        def keep(shape: LayerShape) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                for candidate in bits:
                    layer = self._quantized(shape, (candidate, candidate)).to(images.device)
                    layer.calibrate(*inputs)
                    made[shape.name, "weight_bits", candidate] = layer.weight_quantizer
                    made[shape.name, "activation_bits", candidate] = layer.activation_quantizer

            return hook

        hooks = [self._layers[shape.name].register_forward_pre_hook(keep(shape)) for shape in self._shapes]
        self._model(images)
        for hook in hooks:
            hook.remove()
        self._forget()
        return made

    def _choices(self, policy: Policy) -> list[_Choice]:
        """List the bits of the searched layers in order of execution."""
        found = [policy.layers[shape.name] for shape in self._shapes]
        return [(choice.weight_bits, choice.activation_bits) for choice in found]

    def _switch(self, choices: Sequence[_Choice], last: Sequence[_Choice]) -> None:
        """Give all layers the quantizers of their bits; those before the first change give their last output."""
        same = bool(last)
        for number, (name, layer) in enumerate(self._layers.items()):
            same = same and choices[number] == last[number]
            layer.repeating = same
            weight, activation = choices[number]
            layer.layer.weight_quantizer = self._quantizers[name, "weight_bits", weight]
            layer.layer.activation_quantizer = self._quantizers[name, "activation_bits", activation]

    @torch.no_grad()
    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._model(images).double(), labels)

    def _forget(self) -> None:
        """Drop the outputs of all layers."""
        for layer in self._layers.values():
            layer.output = None
