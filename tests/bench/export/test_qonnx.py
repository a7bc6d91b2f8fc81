"""The QONNX form: executed and costed by the package `qonnx` itself."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench.export.networks import CASES, Sample

MISSING = "onnx and qonnx are not installed"
onnx = pytest.importorskip("onnx", reason=MISSING)
wrapper = pytest.importorskip("qonnx.core.modelwrapper", reason=MISSING)

from qonnx.custom_op.general.quant import quant  # noqa: E402
from qonnx.transformation.infer_datatypes import InferDataTypes  # noqa: E402
from qonnx.transformation.infer_shapes import InferShapes  # noqa: E402
from qonnx.util.inference_cost import inference_cost  # noqa: E402

from bench.costs.counter import price  # noqa: E402
from bench.export.engines import QonnxEngine  # noqa: E402
from bench.export.onnx_forms.qonnx import QonnxForm  # noqa: E402

IMAGE_BITS = 32
"""Bits of a normalised pixel for qonnx, which is a real number."""


@pytest.fixture(scope="module", params=["resnet8, 1 and 3 bits", "inverted residuals", "shifting"])
def case(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return CASES[request.param]()


@pytest.mark.parametrize("name", ["resnet8, 1 and 3 bits", "inverted residuals", "shifting", "tokens"])
def test_qonnx_computes_the_codes_of_exact_arithmetic(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    engine = QonnxEngine(QonnxForm(case.graph).model().SerializeToString(), case.graph.quantizers)
    logits, codes = engine.run(case.images.numpy())
    exact, expected = case.exact()
    np.testing.assert_allclose(logits, exact, atol=2e-6)
    assert {name: int((codes[name] != values).sum()) for name, values in expected.items()} == dict.fromkeys(expected, 0)


def typed(case: Sample) -> Any:
    """The model with the data types that qonnx finds, and with its weights quantized."""
    model = wrapper.ModelWrapper(QonnxForm(case.graph).model())
    model.set_tensor_shape("image", [1, *case.graph.image_shape])
    model = model.transform(InferShapes()).transform(InferDataTypes(allow_scaledint_dtypes=True))
    for node in model.get_nodes_by_op_type("Quant"):
        values = [model.get_initializer(name) for name in node.input]
        if values[0] is not None:
            model.set_initializer(node.output[0], quant(*values, signed=1, narrow=1, rounding_mode="ROUND"))
            model.graph.node.remove(node)
    return model


def test_weights_are_typed_integers_of_one_more_bit(case: Sample) -> None:
    model = typed(case)
    for layer in case.graph.layers:
        multiplying = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
        (node,) = [node for node in multiplying if layer.name in reach(model, node)]
        assert model.get_tensor_datatype(node.input[1]).name == f"SCALEDINT<{layer.weight_bits + 1}>"
        weights = model.get_initializer(node.input[1])
        matrix = layer.weights[:, :, 0, 0].T if layer.linear else layer.weights
        np.testing.assert_allclose(weights, matrix, rtol=1e-6)


def reach(model: Any, node: Any) -> list[str]:
    """Names of the results of the two nodes that end a layer: scale and border."""
    (scale,) = model.find_direct_successors(node)
    (border,) = model.find_direct_successors(scale)
    return list(border.output)


def test_bit_operations_differ_by_the_bit_that_the_type_adds(case: Sample) -> None:
    counted = inference_cost(typed(case), preprocess=False, discount_sparsity=False)["total_cost"]
    expected = sum(
        layer.macs * (layer.weight_bits + 1) * (IMAGE_BITS if index == 0 else layer.activation_bits)
        for index, layer in enumerate(price(case.shape, case.policy).layers)
    )
    assert counted["total_bops"] == expected


@pytest.mark.parametrize("name", ["shifting", "tokens"])
def test_the_bits_of_the_policy_are_in_the_properties(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    properties = {entry.key: entry.value for entry in QonnxForm(case.graph).model().metadata_props}
    assert json.loads(properties["policy_bits"]) == {
        path: {"weight_bits": choice.weight_bits, "activation_bits": choice.activation_bits}
        for path, choice in case.policy.layers.items()
    }


def test_batches_of_another_size_are_executed() -> None:
    torch.manual_seed(0)
    case = CASES["shifting"]()
    engine = QonnxEngine(QonnxForm(case.graph).model().SerializeToString(), case.graph.quantizers)
    whole = engine.logits(case.images.numpy())
    np.testing.assert_allclose(engine.logits(case.images[:1].numpy()), whole[:1], atol=1e-6)
