"""The counter against an independent one: `inference_cost` of the package qonnx.

PyTorch exports the physically reduced network to ONNX. A node `Quant` with the policy's bits on the weight and on the
input of every weighted layer makes it a graph of the QONNX dialect, in which qonnx finds shapes and data types by
itself and counts.

By definition qonnx differs in two ways, which are tested for what they are: its activation memory is that of a layer's
outputs, ours that of its inputs; and where it leaves out operations with weights of zero, a filter of zeros leaves its
own layer only, whereas a pruned filter also leaves the layer that reads it.
"""

import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from bench.compression.compress import reduce, replace_layer
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import NetworkCost, price
from bench.diagnostics.verify.costs import random_policy
from bench.models.build import build_model
from bench.spec.seeds import generator

MISSING = "qonnx, of the development extra, is not installed: no second counter"
onnx = pytest.importorskip("onnx", reason=MISSING)
qonnx_cost = pytest.importorskip("qonnx.util.inference_cost", reason=MISSING)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's exporter

DOMAIN = "qonnx.custom_op.general"
WEIGHTED = ("Conv", "Gemm", "MatMul")
IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Case:
    """A model, its shapes, and a policy."""

    model: nn.Module
    network: NetworkShape
    policy: Policy

    def cost(self) -> NetworkCost:
        return price(self.network, self.policy)

    def reduced(self) -> nn.Module:
        return reduce(self.model, self.network, self.policy)


def case(name: str, bits: int | None) -> Case:
    """A uniform policy, or a random one without `bits`."""
    torch.manual_seed(0)
    model = build_model(name, IMAGE, 100)
    network = trace(model, IMAGE, name=name, dataset="cifar100")
    policy = random_policy(network, generator("qonnx", name)) if bits is None else uniform(network, bits)
    return Case(model, network, policy)


def exported(model: nn.Module) -> Any:
    """A network as ONNX, its weights under their own names; without normalisations, which neither counter counts."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            replace_layer(model, path, nn.Identity())
    file = io.BytesIO()
    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, *IMAGE),),
        file,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    return onnx.load_from_string(file.getvalue())


def insert_quantizers(graph: Any, network: NetworkShape, policy: Policy) -> None:
    """A node `Quant` before the input and the weight of every weighted layer."""

    def constant(value: float) -> str:
        name = f"constant.{value}"
        if all(tensor.name != name for tensor in graph.initializer):
            graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
        return name

    for node in [node for node in graph.node if node.op_type in WEIGHTED]:
        layer = node.input[1].removesuffix(".weight")
        choice = policy.layers[layer]
        parts = ((choice.activation_bits, network[layer].signed_input, 1.0), (choice.weight_bits, True, 0.5))
        for index, (bits, signed, scale) in enumerate(parts):
            quantizer = onnx.helper.make_node(
                "Quant",
                [node.input[index], constant(scale), constant(0.0), constant(float(bits))],
                [f"{layer}.{index}.quantized"],
                domain=DOMAIN,
                signed=int(signed),
                narrow=0,
                rounding_mode="ROUND",
            )
            node.input[index] = quantizer.output[0]
            graph.node.insert(list(graph.node).index(node), quantizer)


def quantize_weights(wrapper: Any) -> None:
    """Apply all quantizers of weights at once, since qonnx's own pass starts again after each."""
    from qonnx.custom_op.general.quant import quant

    for node in wrapper.get_nodes_by_op_type("Quant"):
        values = [wrapper.get_initializer(name) for name in node.input]
        if values[0] is not None:
            signed = onnx.helper.get_node_attr_value(node, "signed")
            wrapper.set_initializer(node.output[0], quant(*values, signed, 0, "ROUND"))
            wrapper.graph.node.remove(node)


def counted(model: nn.Module, policy: Policy, *, zeros_count: bool = True) -> Mapping[str, Any]:
    """The costs that qonnx counts in a network with its filters as they are, independent of the policy."""
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes

    network = trace(model, IMAGE, name=policy.model, dataset=policy.dataset)
    document = exported(model)
    insert_quantizers(document.graph, network, policy)
    document.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    wrapper = qonnx_cost.ModelWrapper(document).transform(InferShapes())
    wrapper = wrapper.transform(InferDataTypes(allow_scaledint_dtypes=True))
    quantize_weights(wrapper)
    total: Mapping[str, Any] = qonnx_cost.inference_cost(wrapper, preprocess=False, discount_sparsity=not zeros_count)[
        "total_cost"
    ]
    assert not any(operator in total["unsupported"] for operator in WEIGHTED)
    return total


def macs_by_bits(total: Mapping[str, Any]) -> Counter[tuple[int, int]]:
    """Operations by the bits of activations and of weights, from entries such as "op_mac_UINT4_SCALEDINT<2>"."""
    found: Counter[tuple[int, int]] = Counter()
    for key, value in total.items():
        if key.startswith("op_mac_"):
            activation, weight = (qonnx_cost.DataType[name].bitwidth() for name in key.split("_")[2:])
            found[activation, weight] += value
    return found


@pytest.mark.parametrize("bits", [4, None], ids=["uniform", "mixed and pruned"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_operations_and_weights_are_those_of_the_other_counter(name: str, bits: int | None) -> None:
    found = case(name, bits)
    ours, theirs = found.cost(), counted(found.reduced(), found.policy)
    assert (theirs["total_macs"], theirs["total_bops"]) == (ours.macs, ours.bops)
    expected: Counter[tuple[int, int]] = Counter()
    for layer in ours.layers:
        expected[layer.activation_bits, layer.weight_bits] += layer.macs
    assert macs_by_bits(theirs) == expected and len(expected) > (1 if bits else 5)
    assert theirs["total_mem_w_elems"] == ours.parameters
    assert theirs["total_mem_w_bits"] == sum(layer.weight_memory_bits for layer in ours.layers)


def test_activation_memory_is_that_of_outputs_there_and_that_of_inputs_here() -> None:
    found = case("resnet8", 4)
    layers = found.network.layers
    outputs = sum(layer.out_channels * math.prod(layer.out_size) for layer in layers)
    inputs = sum(layer.in_channels * math.prod(layer.in_size) for layer in layers)
    assert counted(found.model, found.policy)["total_mem_o_elems"] == outputs != inputs
    edges = sum(layer.in_channels * math.prod(layer.in_size) for layer in layers if layer.position != "middle")
    ours = sum(layer.activation_memory_bits for layer in found.cost().layers)
    assert ours == 4 * (inputs - edges) + 8 * edges


def test_filters_of_zeros_leave_their_own_layer_there_and_also_its_reader_here() -> None:
    found = case("resnet8", 4)
    layer, reader = found.network["stages.0.0.conv1"], found.network["stages.0.0.conv2"]
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.fill_(1)
        found.model.get_submodule(layer.name).weight[:4] = 0  # type: ignore[index, union-attr]
    full = counted(found.model, found.policy)["total_macs"]
    own = 4 * layer.in_channels * 9 * math.prod(layer.out_size)
    others = 4 * reader.out_channels * 9 * math.prod(reader.out_size)
    assert counted(found.model, found.policy, zeros_count=False)["total_macs"] == full - own
    pruned = found.policy.with_layer(layer.name, kept_filters=tuple(range(4, layer.out_channels)))
    assert price(found.network, pruned).macs == full - own - others
