"""Exported files are read again: the same network, its price, its predictions. Nothing that they say is believed."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import load_network
from bench.api import import_network
from bench.costs.counter import price
from bench.errors import BenchError
from bench.export.executor import PackedNetwork
from bench.export.export import export
from bench.export.graph.operations import Graph, Layer
from bench.export.importing.files import read_network_file
from bench.export.packed import _safetensors, packed_network
from bench.store.files import read_checked, write_checked
from bench.training.loop import evaluate
from tests.bench.export.networks import CASES, Sample, Shifting, ran, sample

onnx_installed = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="needs the extra `export`")


def files_of(graph: Graph, form: str) -> tuple[str, bytes]:
    """Name and content of a network's file."""
    if form == "packed":
        return "network.safetensors", packed_network(graph)
    from bench.export.onnx_forms.integer import IntegerForm
    from bench.export.onnx_forms.qdq import QdqForm
    from bench.export.onnx_forms.qonnx import QonnxForm

    kind = {"onnx": IntegerForm, "onnx-qdq": QdqForm, "qonnx": QonnxForm}[form]
    return "network.onnx", kind(graph).model().SerializeToString()


FORMS = ["packed", *(pytest.param(form, marks=onnx_installed) for form in ("onnx", "onnx-qdq", "qonnx"))]
NETWORKS = ["resnet8", "resnet8, 1 and 3 bits", "inverted residuals", "shifting", "tokens", "cct_2_3x2"]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return CASES[request.param]()


@pytest.fixture(scope="module")
def small() -> Sample:
    torch.manual_seed(0)
    return sample(Shifting(), (3, 13, 11))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_the_network_and_its_price_again(case: Sample, form: str, tmp_path: Path) -> None:
    name, content = files_of(case.graph, form)
    (tmp_path / name).write_bytes(content)
    file = read_network_file(tmp_path / name)
    assert file.form == form
    for own, other in zip(file.graph.operations, case.graph.operations, strict=True):
        assert (type(own), own.name, own.inputs, own.shape) == (type(other), other.name, other.inputs, other.shape)
        if isinstance(own, Layer) and isinstance(other, Layer):
            np.testing.assert_array_equal(own.codes, other.codes)
            np.testing.assert_allclose(own.factor, other.factor, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        expected = case.network(case.normalised(torch.float32))
        torch.testing.assert_close(file.network(case.normalised(torch.float32)), expected, rtol=1e-4, atol=1e-4)
    cost, full = price(file.shape, file.policy), price(case.shape, case.policy)
    keys = ("macs", "bops", "parameters", "memory_bits", "peak_memory_bits")
    assert {key: getattr(cost, key) for key in keys} == {key: getattr(full, key) for key in keys}


def test_a_loaded_file_is_a_module_that_can_be_trained(small: Sample, tmp_path: Path) -> None:
    (tmp_path / "network.safetensors").write_bytes(packed_network(small.graph))
    network = load_network(tmp_path / "network.safetensors")
    assert not network.training
    assert {name.rpartition(".")[0] for name, _ in network.named_parameters()} >= {"stem", "depthwise", "fc"}
    network(small.normalised(torch.float32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# --- evaluation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(digits_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned network in all forms that can be executed here. Do not write to it."""
    forms = ["packed", *(["onnx"] if find_spec("onnxruntime") else [])]
    (network,) = export("width", forms, store=digits_study.store, out=tmp_path_factory.mktemp("out")).networks
    return network.folder


def test_an_imported_network_is_what_was_recorded(exported: Path) -> None:
    document = read_checked(exported / "export.json") or {}
    for name in ("network.safetensors", *(["network.onnx"] if find_spec("onnxruntime") else [])):
        imported = import_network(exported / name)
        assert imported.faults == []
        assert imported.verification.top1 == document["recorded_top1"]
        assert {made.equal for made in imported.verification.agreements} == {359}
        assert imported.recorded is not None
        assert set(imported.recorded.equal.values()) == {359}
        assert imported.cost.total("bops") == document["counted"]["bops"]
        assert imported.cost.total("memory") == document["counted"]["memory_kb"]
        assert imported.model.filters < imported.model.all_filters


def test_a_loaded_file_predicts_as_the_run_that_it_is_from(digits_study: Any, exported: Path) -> None:
    from bench.execution.task_loader import TaskLoader

    data = TaskLoader(digits_study.spec, None).task.data
    run, file = load_network("width", store=digits_study.store), load_network(exported / "network.safetensors")
    assert evaluate(file, data, data.test).top1 == evaluate(run, data, data.test).top1


def test_the_command_prints_cost_and_predictions(bench: Any, exported: Path, tmp_path: Path) -> None:
    answer = bench("import", exported / "network.safetensors")
    assert (answer.status, answer.err) == (0, "")
    document = read_checked(exported / "export.json") or {}
    for figure in (
        "359/359",
        f"{document['recorded_top1']:.2f}",
        f"{document['counted']['bops'] / 1e6:.2f}",
        "resnet8",
    ):
        assert figure in answer.out
    shutil.copy(exported / "network.safetensors", tmp_path)  # without what is recorded
    alone = json.loads(bench("import", tmp_path / "network.safetensors", "--json").out)
    assert (alone["recorded"], alone["faults"], alone["top1"]) == (None, [], document["recorded_top1"])


def with_program(content: bytes, change: Callable[[dict[str, Any]], None], **tensors: Any) -> bytes:
    """A packed network with another program."""
    network = PackedNetwork(content)
    program = json.loads(network.tensors["program"].tobytes())
    change(program)
    text = json.dumps(program, separators=(",", ":")).encode()
    made = {**network.tensors, **tensors, "program": np.frombuffer(text, np.uint8)}
    return _safetensors(made, {"format": "packed network"})


def test_a_network_that_is_another_one_than_is_said_is_exit_status_1(
    bench: Any, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    path = folder / "network.safetensors"
    content = path.read_bytes()
    multipliers = PackedNetwork(content).tensors["multipliers"].copy()
    multipliers[-9:] = -multipliers[-9:]  # of the logits
    path.write_bytes(with_program(content, lambda _: None, multipliers=multipliers))
    answer = bench("import", path)
    assert answer.status == 1
    assert "the file is another one than export.json describes: its SHA-256 is" in answer.err
    assert "of 359 predictions by numpy are others" in answer.err

    path.write_bytes(with_program(content, lambda program: program.update(model="resnet20")))
    answer = bench("import", path)
    assert answer.status == 1
    assert "layer 'stages.0.1.conv1' of resnet20 is missing" in answer.err
    assert "model: resnet20 in the file, resnet8 in export.json" in answer.err


def test_a_damaged_document_and_data_that_do_not_fit_are_refused(bench: Any, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    path = folder / "network.safetensors"
    assert (
        "reads images of shape (1, 8, 8) and knows 10 classes; synthetic has"
        in bench("import", path, "--dataset", "synthetic").refusal
    )
    document = read_checked(folder / "export.json") or {}
    write_checked(folder / "export.json", {**document, "predictions": "1 2 x"})
    assert "export.json' is damaged or was written by an earlier version" in bench("import", path).refusal


def test_names_in_a_file_load_no_code(small: Sample, bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    content = packed_network(small.graph)
    for key in ("model", "dataset"):
        Path("network.safetensors").write_bytes(
            with_program(content, lambda program, key=key: program.update({key: "evil:make"}))  # type: ignore[misc]
        )
        refusal = bench("import", "network.safetensors").refusal
        assert "which is not known here; name yours: --dataset NAME" in refusal
    assert not Path("executed").exists()


# --- foreign and damaged files -------------------------------------------------------------------------------------


def refusal_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BenchError) as caught:
        read_network_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_in(kind: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        next(step for step in program["operations"] if step["operation"] == kind).update(values)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda program: program.update(version=1),
            "its program has version 1, and this version of the harness reads 2",
        ),
        (lambda program: program.update(operations=[]), "it has no layers"),
        (lambda program: program.update(image_shape=[3, 60000, 60000]), "'image' has 10,800,000,000 numbers"),
        (set_in("layer", operation="eval"), "operations.0: Input tag 'eval'"),
        (set_in("layer", operation="weights"), "operations.0: Input tag 'weights'"),
        (set_in("layer", path="a/../b"), "operations.0.layer.path: String should match"),
        (set_in("layer", path="forward"), "no layer can have the path 'forward'"),
        (set_in("layer", groups=3), "'stem' has weights of shape (6, 3, 3, 3) and reads (3, 13, 11)"),
        (set_in("layer", first_bit=8), "its program has values that do not follow"),
        (set_in("layer", more=1), "its program has values that do not follow"),
        (set_in("quantize", multiplier=5), "its program has values that do not follow"),
        (set_in("quantize", inputs=["nothing"]), "reads tensors that are not made before it"),
        (set_in("quantize", inputs=["image"]), "reads codes, which only layers may read"),
        (set_in("quantize", largest_code=5), "5 as the largest code, and no number of bits gives it"),
        (set_in("max_pool", padding=[5, 5, 5, 5]), "has windows without a number"),
        (set_in("reshape", shape=[5]), "makes shape (5,) of (4,)"),
        (lambda program: program.update(output="stem"), "'stem' is no vector of logits"),
    ],
    ids=range(17),
)
def test_programs_that_the_harness_does_not_write_are_refused(
    small: Sample, change: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    content = with_program(packed_network(small.graph), change)
    assert reason in refusal_of(tmp_path / "network.safetensors", content)


def test_a_program_that_would_fill_the_memory_is_refused(small: Sample, tmp_path: Path) -> None:
    tensors = PackedNetwork(packed_network(small.graph)).tensors
    program = b'{"version":2,"more":[' + b"[]," * 600_000 + b"[]]}"
    content = _safetensors({**tensors, "program": np.frombuffer(program, np.uint8)}, {})
    reason = refusal_of(tmp_path / "network.safetensors", content)
    assert "its program is not JSON: it has more than 64 MB or 524,288 values" in reason


def test_other_files_are_refused_in_one_line(small: Sample, tmp_path: Path) -> None:
    path, content = tmp_path / "network.safetensors", packed_network(small.graph)
    assert "it is no valid safetensors file" in refusal_of(path, content[:-1])
    assert "it has no program" in refusal_of(path, _safetensors({"weight": np.zeros(3, np.uint8)}, {}))
    tensors = PackedNetwork(content).tensors
    assert "weights are missing" in refusal_of(path, _safetensors({**tensors, "weights": tensors["weights"][:9]}, {}))
    more = {**tensors, "weights": np.append(tensors["weights"], np.uint8(0))}
    assert "its 'weights' has another size" in refusal_of(path, _safetensors(more, {}))
    assert "it has other tensors" in refusal_of(path, _safetensors({**tensors, "more": tensors["weights"]}, {}))
    huge = {**tensors, "biases": np.full(len(tensors["biases"]), 1 << 62, dtype=np.int64)}
    assert "could have more than 62 bits" in refusal_of(path, _safetensors(huge, {}))
    with pytest.raises(BenchError, match="is no exported network; allowed: files that `bench export` wrote"):
        read_network_file(tmp_path / "network.pt")
    with pytest.raises(BenchError, match="No such file"):
        read_network_file(tmp_path / "none.safetensors")


def test_biases_that_contradict_the_padding_are_refused(small: Sample, tmp_path: Path) -> None:
    """The border of a layer follows from its weights: a file may not have another one."""
    content = packed_network(small.graph)
    biases = PackedNetwork(content).tensors["biases"].copy()
    biases[1] += 1 << 20  # another class of border of the first channel
    changed = with_program(content, lambda _: None, biases=biases)
    assert "its 'biases' is not what" in refusal_of(tmp_path / "network.safetensors", changed)
    assert ran(content, small.images)[0].shape == (3, 10)


@onnx_installed
def test_models_that_the_harness_does_not_write_are_refused(small: Sample, tmp_path: Path) -> None:
    import onnx

    content = files_of(small.graph, "onnx")[1]

    def refusal(change: Callable[[Any], Any]) -> str:
        model = onnx.ModelProto.FromString(content)
        change(model)
        return refusal_of(tmp_path / "network.onnx", model.SerializeToString())

    def external(model: Any) -> None:
        constant = model.graph.initializer[0]
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="/etc/passwd")

    def doubled(model: Any) -> None:
        constant = next(each for each in model.graph.initializer if each.name == "image.mean")
        constant.raw_data = (2 * np.frombuffer(constant.raw_data, np.float32)).tobytes()

    assert "it has no program" in refusal(lambda model: model.ClearField("metadata_props"))
    assert "its nodes or constants are not those" in refusal(lambda model: model.graph.node.add(op_type="Identity"))
    assert "its nodes or constants are not those" in refusal(doubled)
    assert "constants in another form" in refusal(external)
    assert "it is no ONNX model" in refusal_of(tmp_path / "network.onnx", b"\xff" + content)
    assert "it is no ONNX model" in refusal_of(tmp_path / "network.onnx", content[:-1])


@onnx_installed
@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (b"\x0a\x00" * 1_100_000, "it has more than 1,048,576 nodes and constants"),
        (b"\x0a\x80\x80\x80\x05" + b"\x2a\x00" * (5 << 20), "bytes besides its constants"),
    ],
    ids=("nodes", "attributes of one node"),
)
def test_models_that_would_fill_the_memory_are_refused(graph: bytes, reason: str, tmp_path: Path) -> None:
    length = len(graph)
    content = b"\x3a" + bytes([*((length >> shift & 127) | 128 for shift in (0, 7, 14)), length >> 21]) + graph
    assert reason in refusal_of(tmp_path / "network.onnx", content)
