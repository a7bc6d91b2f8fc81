"""Studies as objects: made from values, and read as data frames, policies and charts."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import bench
from bench import BenchError, Study, compare, load_network
from bench.method import Method
from methods.fixed import Fixed
from methods.sbs import Sbs
from tests.bench.cli.specification import toml


@pytest.fixture
def file(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    """The tiny study's specification."""
    (tmp_path / "tiny.toml").write_text(toml(tiny.values))
    return tmp_path / "tiny.toml"


@pytest.fixture
def study(file: Path, copied: Path) -> Study:
    """The tiny study, finished, from its values."""
    return Study(file=file, store=copied)


def test_values_beat_the_preset_or_file(file: Path) -> None:
    made = Study(
        file=file,
        methods=["fixed", Sbs],
        model="resnet20",
        budgets="3bit",
        seeds=2,
        search={"epochs": 7},
        settings={"tuning.trials": 5, "search.lr": 0.5},
    ).spec
    assert (made.name, made.task.model, made.task.dataset) == ("tiny", "resnet20", "synthetic")
    assert (made.methods, made.budgets, made.seeds) == (("fixed", "sbs"), ("3bit",), (0, 1))
    assert (made.search.epochs, made.search.lr, made.search.batch_size, made.tuning.trials) == (7, 0.5, 32, 5)
    assert Study(methods="fixed").spec.methods == Study(methods=Fixed).spec.methods == ("fixed",)
    assert Study().spec.name == Study("quick").spec.name == "quick"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metods": ["sbs"]}, "unknown specification key 'metods': did you mean 'methods'?"),
        ({"search": {"epoch": 3}}, "unknown specification key 'epoch': did you mean 'epochs'?"),
        ({"seeds": 0}, "'seeds' is 0; give a count from 1 to 10000"),
        ({"seeds": 10**9}, "'seeds' is 1000000000; give a count from 1 to 10000"),
        ({"seeds": 1.5}, "'seeds' is 1.5; give a count"),
        ({"seeds": "3"}, "'seeds' is '3'; give a count"),
        ({"methods": 5}, "'methods' is 5; give a list"),
        ({"methods": [None]}, "'methods' has None; allowed: names"),
        ({"budgets": 4}, "'budgets' is 4; give a list"),
        ({"preset": "quik"}, "unknown preset 'quik': did you mean 'quick'?"),
        ({"preset": "quick", "file": "x.toml"}, "preset 'quick' and file 'x.toml' exclude each other"),
        ({"file": "x.toml"}, "cannot read the specification 'x.toml'"),
        ({"methods": [type("Mine", (Method,), {})]}, "is not at the top level of a module in a file"),
    ],
)
def test_wrong_values_are_errors_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError) as error:
        Study(**values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_class_in_a_file_stands_for_its_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halving_method.py").write_text(
        "from methods.fixed import Fixed\n\n\nclass Halving(Fixed):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from halving_method import Halving  # type: ignore[import-not-found]

    spec = Study(methods=[Halving, "fixed"]).spec
    assert spec.methods == ("halving", "fixed")
    assert spec.method_files == {"halving": f"{tmp_path}/halving_method.py:Halving"}


def test_results_are_those_of_the_files(study: Study) -> None:
    folder = study.store.study("tiny")
    for frame, file in ((study.results, "results.csv"), (study.runs, "runs.csv")):
        written = pd.read_csv(folder / file)
        assert list(frame.columns) == list(written.columns) and len(frame) == len(written)
    assert set(study.status["state"]) == {"done"}
    assert Study.open(store=study.store.root).spec == study.spec
    assert Study.open("tiny", store=study.store.root).results.equals(study.results)
    assert "sbs" in study.table() and repr(study).startswith("<Study tiny: ")


def test_results_are_of_the_specification_that_was_asked_for(file: Path, copied: Path) -> None:
    more = Study(file=file, seeds=[0, 7], store=copied)
    states = more.runs.groupby("seed")["status"].agg(set)
    assert states[0] == {"done"} and states[7] == {"missing"}
    with pytest.raises(BenchError, match="no run of fixed with seed 7 is done"):
        more.run_id("fixed", seed=7)


def test_a_study_that_was_not_run_has_no_results(tiny: SimpleNamespace, tmp_path: Path) -> None:
    study = Study(**tiny.values, store=tmp_path / "store")
    assert (
        study.results.empty and set(study.runs["status"]) == {"missing"} and set(study.status["state"]) == {"planned"}
    )
    assert len(study.plan.runs) == len(study.runs)
    assert not (tmp_path / "store").exists()
    with pytest.raises(BenchError, match="no study in the store"):
        Study.open(store=tmp_path / "store")


def test_the_policy_of_a_run(study: Study) -> None:
    policy = study.policy("fixed", seed=1)
    assert (policy.model, policy.dataset) == ("resnet8", "synthetic")
    assert (
        bench.price("resnet8", policy, dataset="synthetic").total("bops")
        == study.runs["bops"][study.runs["id"] == study.run_id("fixed", seed=1)].item()
    )
    with pytest.raises(BenchError, match=r"unknown method 'fixd': did you mean 'fixed'\?"):
        study.policy("fixd")
    with pytest.raises(BenchError, match="unknown budget '5bit'"):
        study.policy("fixed", budget="5bit")


def test_the_network_of_a_run_computes_what_the_run_did(study: Study) -> None:
    method = study.spec.methods[0]
    network = study.load_network(method)
    assert not network.training and isinstance(network, torch.nn.Module)
    logits = network(torch.zeros(2, 3, 16, 16))
    again = load_network(study.run_id(method)[:8], store=study.store.root)
    assert torch.equal(logits, again(torch.zeros(2, 3, 16, 16)))
    with pytest.raises(BenchError, match=f"'{method}' stands for 2 finished runs; name one by its id"):
        load_network(method, store=study.store.root)


def test_figures_are_charts(study: Study) -> None:
    charts = study.figures("convergence")
    assert charts and all(chart.to_dict()["$schema"].startswith("https://vega.github.io") for chart in charts.values())
    with pytest.raises(BenchError, match=r"unknown report 'tradeof': did you mean 'tradeoff'\?"):
        study.figures("tradeof")


def test_a_comparison_has_sentences_and_numbers(study: Study) -> None:
    first, second = study.spec.methods[:2]
    comparison = study.compare(first, second)
    assert str(comparison).splitlines() and len(comparison.frame) == len(comparison.verdicts)
    assert comparison.to_json()["lines"] == compare(first, second, store=study.store.root).to_json()["lines"]
    assert first in comparison.verdicts[0]  # a sentence on the difference, or on why there is none


def test_what_has_finished_is_not_run_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.study.run_units", lambda _, units: [pytest.fail("run") for unit in units if False])
    monkeypatch.setattr("bench.reporting.mlflow.tracker.Tracker.prepare", lambda *_: True)
    monkeypatch.setattr("bench.reporting.mlflow.tracker.Tracker.log_study", lambda *_, **__: True)
    assert study.run(progress=False) is study
    command = str(study.document["command"])
    assert command.startswith("bench run --spec ") and command.endswith(f"--store {study.store.root}")
    with pytest.raises(BenchError, match="--timeout '5' is not understood"):
        study.run(timeout="5")
    shutil.rmtree(study.store.root)


def test_the_public_names_are_loaded_when_they_are_used() -> None:
    assert {"Study", "compare", "load_network", "price", "BenchError"} <= set(dir(bench))
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'Studdy'"):
        _ = bench.Studdy
