"""ONNX forms: integer accumulators are exact at every level of optimisation, and files load in present runtimes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench.export.networks import CASES, InvertedResiduals, Sample, ran, sample

MISSING = "onnx and onnxruntime, of the extra `export`, are not installed"
onnx = pytest.importorskip("onnx", reason=MISSING)
runtime = pytest.importorskip("onnxruntime", reason=MISSING)

from bench.export.executor import PackedNetwork  # noqa: E402
from bench.export.onnx_forms import integer as onnx_integer  # noqa: E402
from bench.export.onnx_forms.integer import IntegerForm  # noqa: E402
from bench.export.onnx_forms.qdq import QdqForm  # noqa: E402
from bench.export.packed import packed_network  # noqa: E402

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"]
NAMES = ["resnet8", "resnet8, 1 and 3 bits", "shifting", "inverted residuals", "mobilenet_v2", "tokens", "cct_2_3x2"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return CASES[request.param]()


def outputs(model: Any, images: torch.Tensor, names: list[str], level: str = "ORT_ENABLE_ALL") -> dict[str, Any]:
    """Logits and further tensors of a model."""
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(["logits", *names], session.run(["logits", *names], {"image": images.numpy()}), strict=True))


def accumulators(made: Sample, codes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sums of products of all layers but the first, by the executor of the packed form, for given codes."""
    network = PackedNetwork(packed_network(made.graph))
    for step in network.steps:
        if step["operation"] == "layer" and step["inputs"] != ["image"]:
            read = codes[step["inputs"][0]].astype(np.int64)
            sums = network._sums(step, read)[:, 0]
            if step["linear"]:  # channels are last
                sums = np.moveaxis(sums[..., 0], 1, -1).reshape(*read.shape[:-1], -1)
            yield f"{step['path']}.sums", sums


@pytest.mark.parametrize("level", LEVELS)
def test_integer_accumulators_are_exact_layer_by_layer(case: Sample, level: str) -> None:
    names = [quantizer.name for quantizer in case.graph.quantizers]
    sums = [f"{layer.path}.sums" for layer in case.graph.layers[1:]]
    found = outputs(IntegerForm(case.graph).model(), case.images, [*names, *sums], level)
    expected = dict(accumulators(case, found))
    assert list(expected) == sums
    for name in sums:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("form", [IntegerForm, QdqForm])
def test_logits_are_those_of_the_harness(case: Sample, form: Any) -> None:
    exact, _ = case.exact()
    for level in (LEVELS[0], LEVELS[-1]):
        logits = outputs(form(case.graph).model(), case.images, [], level)["logits"]
        np.testing.assert_allclose(logits, exact, atol=2e-6)


def test_large_sums_do_not_saturate() -> None:
    """All codes and weights at their largest: 16-bit sums of pairs, as some processors compute, would overflow."""
    made = sample(InvertedResiduals(), (3, 9, 7), bits=(7, 8), prune=False)
    for layer in made.graph.layers:
        layer.codes[:] = layer.weight_levels
    made.images[:] = 255
    names = [quantizer.name for quantizer in made.graph.quantizers]
    sums = [f"{layer.path}.sums" for layer in made.graph.layers[1:]]
    found = outputs(IntegerForm(made.graph).model(), made.images, [*names, *sums])
    for name, values in accumulators(made, found):
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_single_zero_point_of_128_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 8 bits are 2q − 255; two products with the zero point 128 would make 2q − 256 of it."""
    made = sample("resnet8", (3, 8, 8), bits=(8,), prune=False)
    monkeypatch.setattr(onnx_integer, "ZERO_POINTS", (128, 128))
    names = [quantizer.name for quantizer in made.graph.quantizers]
    sums = [f"{layer.path}.sums" for layer in made.graph.layers[1:]]
    found = outputs(IntegerForm(made.graph).model(), made.images, [*names, *sums])
    assert all((found[name] != values).any() for name, values in accumulators(made, found))


@pytest.mark.parametrize("form", [IntegerForm, QdqForm])
def test_files_load_in_present_runtimes(case: Sample, form: Any) -> None:
    model = form(case.graph).model()
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_integer_weights_have_a_byte_each(case: Sample) -> None:
    stored = {tensor.name: tensor for tensor in IntegerForm(case.graph).model().graph.initializer}
    for layer in case.graph.layers:
        assert len(stored[f"{layer.path}.weight"].raw_data) == layer.codes.size


def test_the_packed_form_and_the_integer_form_have_the_same_codes(case: Sample) -> None:
    names = [quantizer.name for quantizer in case.graph.quantizers]
    found = outputs(IntegerForm(case.graph).model(), case.images, names)
    _, seen = ran(packed_network(case.graph), case.images)
    differing = sum(int((found[name] != seen[name]).sum()) for name in names)
    assert differing <= 2  # float32 may round a number very near the middle between two codes another way
