"""The views of a study in MLflow: what they name is there, and both of MLflow's readers can read them."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.charts import COLOURS, method_looks
from bench.reporting.mlflow import entries as tracking_entries
from bench.reporting.mlflow.tracker import Tracker
from bench.reporting.mlflow.views import VIEWS, View, colours, experiment_tags, view_url
from tests import fake_store

keyed = pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)


def inflated(text: str) -> dict[str, Any]:
    assert text.startswith("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;")))))


def state(view: View) -> dict[str, Any]:
    return inflated(json.loads(experiment_tags(5)[view.tag])["state"])


@keyed
def test_a_view_reads_the_same_in_both_of_mlflows_forms(view: View) -> None:
    text = experiment_tags(5)[view.tag]
    assert len(text) <= 5000  # what MLflow's databases take
    document = json.loads(text)
    assert (document.pop("name"), document.pop("createdAt")) == (view.name, 5)
    assert inflated(document.pop("state")) == document
    first = "tags.`result`" if view.name == "Methods" else "params.`method`"  # a method's name is that of its run
    assert document["selectedColumns"][0] == first


def names(columns: list[str]) -> list[tuple[str, str]]:
    return [(column.partition(".")[0], column.partition("`")[2].rstrip("`")) for column in columns]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    fake = fake_store.mixed(tmp_path_factory.mktemp("store"))
    assert Tracker(f"sqlite:///{fake.root / 'mlflow.db'}", fake.root).log_study(fake.store, fake.document())
    return fake


def tracker_of(fake: Any) -> Tracker:
    return Tracker(f"sqlite:///{fake.root / 'mlflow.db'}", fake.root)


@keyed
def test_what_a_view_names_is_there(mixed: Any, view: View) -> None:
    """MLflow leaves a column or an axis empty when no run has it, and says nothing."""
    tracker, found = tracker_of(mixed), state(view)
    order = f"{found['orderByKey']} {'ASC' if found['orderByAsc'] else 'DESC'}"
    experiment = [tracker.find_experiment("quick")]
    runs = list(tracker._client.search_runs(experiment, found["searchFilter"], order_by=[order]))
    assert runs and {run.data.tags["phase"] for run in runs} == {view.phase}
    known = {(kind, name) for run in runs for kind in ("params", "metrics", "tags") for name in getattr(run.data, kind)}
    metrics = {chart[axis]["key"] for chart in view.charts for axis in ("xaxis", "yaxis") if axis in chart}
    metrics |= {name for chart in view.charts for name in chart.get("selectedMetrics", ())}
    metrics |= {chart["metricKey"] for chart in view.charts if "metricKey" in chart}
    wanted = set(names([*found["selectedColumns"], found["orderByKey"]])) | {("metrics", name) for name in metrics}
    assert wanted <= known
    values = [getattr(run.data, kind).get(name) for run in runs for kind, name in names([found["orderByKey"]])]
    assert values == sorted(values, reverse=not view.ascending)


def test_views_are_sent_once(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = tracker_of(mixed)
    experiment = tracker.get_experiment("quick")
    assert experiment is not None and experiment_tags(experiment.creation_time).items() <= experiment.tags.items()
    sent: list[str] = []
    monkeypatch.setattr(tracker._client, "set_experiment_tag", lambda number, key, value: sent.append(key))
    assert tracker.prepare({"name": "quick"}) and sent == []
    monkeypatch.setattr(
        "bench.reporting.mlflow.tracker.experiment_tags", lambda created: {VIEWS[0].tag: "new", "more": "x"}
    )
    assert tracker.prepare({"name": "quick"}) and sent == [VIEWS[0].tag, "more"]


def test_urls_name_the_view() -> None:
    page = "http://h:1/#/experiments/7/runs"
    assert view_url("http://h:1/", "7", VIEWS[0]).startswith(f"{page}?viewStateShareKey=bench-methods&")
    assert view_url("http://h:1", "7", VIEWS[1], charts=True).endswith("&compareRunsMode=CHART")


def test_a_method_has_one_colour_in_all_of_its_runs(mixed: Any) -> None:
    tracker = tracker_of(mixed)
    runs = tracker._client.search_runs([tracker.find_experiment("quick")])
    found = {(run.data.params["method"], run.data.tags["mlflow.runColor"]) for run in runs}
    looks = method_looks(("fixed", "sbs", "dnas", "full_precision"))
    assert found == {(method, look.colour) for method, look in looks.items()}
    many = colours([f"m{number % 12}" for number in range(30)])
    assert len(many) == 12 and many["m0"] == many[f"m{len(COLOURS)}"]


def test_values_of_an_ablated_option_have_colours_of_their_own(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 71.0])
    document = fake.document() | {"places": {"sbs-4bit-1": {"method": "sbs[group_size=8]"}}}
    tracker = tracker_of(fake)
    assert tracker.log_study(fake.store, document)
    runs = tracker._client.search_runs([tracker.find_experiment("quick")], "tags.phase = 'run'")
    assert len({run.data.tags["mlflow.runColor"] for run in runs}) == 2


# Policies as artifacts.


def pages(tracker: Tracker, text: str, name: str = "policy.html") -> dict[str, str]:
    """A page of runs by run name."""
    client, found = tracker._client, {}
    for run in client.search_runs([tracker.find_experiment("quick")], text):
        names = [file.path for file in client.list_artifacts(run.info.run_id)]
        if name in names:
            path = client.download_artifacts(run.info.run_id, name)
            found[run.info.run_name] = Path(path).read_text(encoding="utf-8")
    return found


def test_runs_trials_and_parents_have_a_policy_page(mixed: Any) -> None:
    tracker = tracker_of(mixed)
    assert "<td>stem</td>" in pages(tracker, "tags.phase = 'run'")["sbs 4bit seed 0"]
    assert pages(tracker, "tags.phase = 'trial'").keys() == {"sbs 4bit trial 1", "sbs 4bit trial 2"}
    parents = pages(tracker, "tags.phase = 'summary'")
    assert parents.keys() == {"fixed 4bit", "sbs 4bit", "dnas 4bit", "full_precision"}
    assert "Means of 3 seeds" in parents["sbs 4bit"] and "Means of" not in parents["dnas 4bit"]


def test_parents_have_the_table_and_begin_with_top1(mixed: Any) -> None:
    tracker = tracker_of(mixed)
    tables = pages(tracker, "tags.phase = 'summary'", "table.html")
    assert len(tables) == 4 and "73.00±1.32" in tables["sbs 4bit"]
    (parent,) = tracker._client.search_runs([tracker.find_experiment("quick")], "attributes.run_name = 'sbs 4bit'")
    assert next(iter(parent.data.metrics)) == "top1_mean"


def with_bits(bits: int) -> dict[str, Any]:
    layer = {"weight_bits": bits, "activation_bits": 8, "kept_filters": None}
    return {**fake_store.POLICY, "layers": {"stem": layer}}


def test_a_parents_policies_are_read_again_only_when_its_runs_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, policy=with_bits(2))
    fake.run("dnas", 0, 70.0, policy=with_bits(3))
    fake.failed("sbs", 1, "NaN loss")
    tracker = tracker_of(fake)
    assert tracker.log_study(fake.store, fake.document())
    made: list[str] = []
    page = tracking_entries.policy_page
    monkeypatch.setattr(tracking_entries, "policy_page", lambda some, title: made.append(title) or page(some, title))
    assert tracker.log_study(fake.store, fake.document()) and made == []
    fake.run("sbs", 2, 72.0, policy=with_bits(6))
    assert tracker.log_study(fake.store, fake.document())
    assert made == ["sbs 4bit", "sbs 4bit seed 2"]
    assert ">4 <small>[2, 6]</small></td>" in pages(tracker, "tags.phase = 'summary'")["sbs 4bit"]


def test_a_policy_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, policy={"model": "resnet8"})
    fake.run("sbs", 1, 70.0, policy=with_bits(2))
    fake.run("sbs", 2, 70.0, policy={**with_bits(2), "layers": {"other": with_bits(2)["layers"]["stem"]}})
    tracker = tracker_of(fake)
    assert tracker.log_study(fake.store, fake.document())
    assert pages(tracker, "tags.phase = 'run'").keys() == {"sbs 4bit seed 1", "sbs 4bit seed 2"}
    assert "Means of" not in pages(tracker, "tags.phase = 'summary'")["sbs 4bit"]
