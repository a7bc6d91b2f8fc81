"""Exports of runs: verified on the whole test split, refused before anything is written, executed by NumPy alone."""

import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.errors import BenchError
from bench.export import measurement
from bench.export.executor import PackedNetwork
from bench.export.export import export
from bench.export.graph.operations import Quantize
from bench.export.rebuild import load_network
from bench.export.verification import Agreement, Observed, is_near_tie
from bench.store.files import Store, read_checked, write_checked
from bench.training.loop import evaluate

onnx_installed = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="needs the extra `export`")


def test_every_prediction_and_the_counted_bytes(digits_study: Any, tmp_path: Path) -> None:
    """A quantized network, and one that also lost filters."""
    exports = export("digits", store=digits_study.store, out=tmp_path)
    assert len(exports.networks) == 2
    assert len(exports.left_out) == 1
    for network in exports.networks:
        document = network.document
        (agreement,) = network.agreements
        assert (agreement.equal, agreement.images, agreement.broken) == (359, 359, False)
        assert agreement.top1 == document["recorded_top1"] == document["rebuilt_top1"]
        parts = document["forms"]["packed"]["parts"]
        assert parts["weights"] == math.ceil(document["counted"]["weight_bits"] / 8)
        assert sum(parts.values()) == (tmp_path / network.run / "network.safetensors").stat().st_size
        assert read_checked(tmp_path / network.run / "export.json")["run"] == network.run  # type: ignore[index]
        policy = json.loads((digits_study.store.unit("runs", network.run) / "policy.json").read_text())
        pruned = any(layer["kept_filters"] for layer in policy["layers"].values())
        assert pruned == (document["method"] == "width")


@onnx_installed
def test_forms_of_onnx_predict_the_same(digits_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ROUNDS", 2)
    (network,) = export("fixed", ["onnx", "onnx-qdq"], store=digits_study.store, out=tmp_path, measure=True).networks
    assert {(made.form, made.equal) for made in network.agreements} == {("onnx", 359), ("onnx-qdq", 359)}
    assert {made.engine for made in network.agreements} >= {
        "onnxruntime, none optimisations",
        "onnxruntime, all optimisations",
    }
    measured = network.document["measured"]
    assert {(entry["form"], entry["batch"]) for entry in measured} == {
        (form, batch) for form in ("float", "reduced float", "onnx", "onnx-qdq") for batch in (1, 16)
    }
    assert all(entry["milliseconds"] > 0 and entry["ratio"] == sorted(entry["ratio"]) for entry in map(plain, measured))
    assert {entry["ratio"][1] for entry in measured if entry["form"] == "float"} == {1.0}


def plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "ratio": list(entry["ratio"])}


def test_the_files_of_a_run_need_numpy_alone(digits_study: Any, tmp_path: Path) -> None:
    (network,) = export("width", store=digits_study.store, out=tmp_path).networks
    data = digits_study_data(digits_study)
    images = torch.cat([batch for batch, _ in data.test.unchanged(500)])
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-I", "executor.py", "network.safetensors", "../images.npy"]
    printed = subprocess.run(command, cwd=network.folder, capture_output=True, text=True, check=True).stdout
    correct = (np.array(printed.split(), dtype=np.int64) == data.test.labels.numpy()).mean()
    assert 100 * correct == pytest.approx(network.document["recorded_top1"])


def test_a_loaded_network_has_the_recorded_accuracy(digits_study: Any) -> None:
    network = load_network("fixed", store=digits_study.store)
    data = digits_study_data(digits_study)
    assert evaluate(network, data, data.test).top1 == digits_study.record("fixed 0")["metrics"]["top1"]
    with pytest.raises(BenchError, match="'digits' stands for 3 finished runs; name one by its id"):
        load_network("digits", store=digits_study.store)


def digits_study_data(digits_study: Any) -> Any:
    from bench.execution.task_loader import TaskLoader

    return TaskLoader(digits_study.spec, None).task.data


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_the_agreement(bench: Any, digits_study: Any, tmp_path: Path) -> None:
    answer = bench("export", "fixed", "--store", digits_study.store.root, "--out", tmp_path / "out")
    assert (answer.status, answer.err) == (0, "")
    assert "359/359" in answer.out
    folder = next((tmp_path / "out").iterdir())
    assert str(folder) in answer.out
    assert {path.name for path in folder.iterdir()} == {"network.safetensors", "executor.py", "export.json"}


def test_a_broken_promise_is_exit_status_1(
    bench: Any, digits_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_border(self: PackedNetwork, step: Any) -> Any:
        shape = (step["weight_shape"][0], *step["border_classes"])
        return self.numbers("biases", step["first_bias"], shape)[:, :1, :1]

    monkeypatch.setattr(PackedNetwork, "_border", without_border)
    answer = bench("export", "fixed", "--store", digits_study.store.root, "--out", tmp_path, "--json")
    assert answer.status == 1
    (agreement,) = json.loads(answer.out)["networks"][0]["forms"]["packed"]["agreements"]
    assert agreement["broken"]
    assert agreement["equal"] + agreement["traced"] < 359


def test_refused_runs_write_nothing(bench: Any, digits_study: Any, tmp_path: Path) -> None:
    out, store = tmp_path / "out", digits_study.store.root

    def refusal(name: str, *options: object) -> str:
        line: str = bench("export", name, "--store", store, "--out", out, *options).refusal
        assert not out.exists()
        return line

    assert "'conv1' is a convolution with full precision; only quantized layers are exported" in refusal(
        "full_precision"
    )
    assert "unknown format 'onxn': did you mean 'onnx'?" in refusal("fixed", "--format", "onxn")
    assert "--measure times ONNX files; add onnx or onnx-qdq" in refusal("fixed", "--measure")
    assert "unknown study, method or run 'nothing'" in refusal("nothing")


def test_a_run_of_an_earlier_version_is_refused_among_others(bench: Any, digits_study: Any, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("exports")  # of other tests
    store = Store(Path(shutil.copytree(digits_study.store.root, tmp_path / "store", ignore=ignored)))
    identity = next(unit.identity for unit in digits_study.plan.runs if unit.method == "width")
    record = store.record("runs", identity) or {}
    del record["normalized_weights"]
    write_checked(store.unit("runs", identity) / "record.json", record)
    answer = bench("export", "digits", "--store", store.root)
    assert answer.status == 1
    assert f"{identity} was not exported: run {identity} was made before runs recorded" in answer.err
    assert [path.name for path in (store.root / "exports").iterdir()] == [
        unit.identity for unit in digits_study.plan.runs if unit.method == "fixed"
    ]


def test_own_quantizers_are_refused_by_name(bench: Any, own_study: Any, tmp_path: Path) -> None:
    refusal = bench("export", "dnas", "--store", own_study.store.root, "--out", tmp_path / "out").refusal
    assert "layer 'conv1' has a DorefaWeight; only networks with the common quantizer (recipe = common)" in refusal
    assert not (tmp_path / "out").exists()


# --- near ties -----------------------------------------------------------------------------------------------------

QUANTIZERS = [
    Quantize(name=name, inputs=("x",), shape=(2,), layer=name, bits=2, clip=1.0, offset=0.0)
    for name in ("first", "second")
]


def near_tie(ours: dict[str, list[int]], positions: dict[str, list[float]], theirs: dict[str, list[int]]) -> bool:
    observed = Observed(
        logits=np.array([[1.0, 0.5]]),
        codes={name: np.array([codes], dtype=np.uint8) for name, codes in ours.items()},
        positions={name: np.array([values]) for name, values in positions.items()},
    )
    return is_near_tie(
        observed, 0, 1, {name: np.array([codes], dtype=np.uint8) for name, codes in theirs.items()}, QUANTIZERS
    )


POSITIONS = {"first": [0.4999999, 2.0], "second": [1.2, 1.7]}
OURS = {"first": [0, 2], "second": [1, 2]}


@pytest.mark.parametrize(
    ("theirs", "explained"),
    [
        ({"first": [1, 2], "second": [3, 0]}, True),  # the first code lies half-way; what follows may be anything
        ({"first": [0, 2], "second": [1, 1]}, False),  # 1.7 is not half-way between 1 and 2
        ({"first": [1, 1], "second": [1, 2]}, False),  # neither is 2.0
        ({"first": [2, 2], "second": [1, 2]}, False),  # rounding does not skip a code
        ({"first": [0, 2], "second": [1, 2]}, False),  # the codes are the same, but the logits differ by a half
    ],
)
def test_only_near_ties_explain_another_prediction(theirs: dict[str, list[int]], explained: bool) -> None:
    assert near_tie(OURS, POSITIONS, theirs) is explained


def test_nearly_equal_logits_explain_another_prediction() -> None:
    codes = {name: np.array([values], dtype=np.uint8) for name, values in OURS.items()}
    observed = Observed(logits=np.array([[1.0, 0.99999]]), codes=codes, positions={})
    assert is_near_tie(observed, 0, 1, codes, QUANTIZERS)


def test_only_promises_can_be_broken() -> None:
    found = {"form": "onnx-qdq", "engine": "e", "version": "1", "images": 10, "equal": 8, "traced": 1}
    assert Agreement(promised=True, **found).broken  # type: ignore[arg-type]
    assert not Agreement(promised=False, **found).broken  # type: ignore[arg-type]
    assert not Agreement(promised=True, **{**found, "traced": 2}).broken  # type: ignore[arg-type]
