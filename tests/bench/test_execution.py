"""One unit of work at a time: what it leaves in the store, and how it ends."""

import json
import math
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from bench import execution
from bench.budget import parse_budget
from bench.compression import compress
from bench.costs import COUNTER_VERSION, price
from bench.errors import BenchError, UnreachableBudgetError
from bench.execution import Workbench, final_cost, pretrain, run
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.plan import make_plan, method_source
from bench.policy import load_policy, uniform
from bench.seeds import derive, tuning_seed
from bench.spec import canonical_hash
from bench.store import Store, load_state, read_json, save_state
from bench.training import evaluate

RUNS = [f"{method} {seed}" for method in ("sbs", "dnas", "fixed", "full_precision") for seed in (0, 1)]
METRICS = {
    *("top1", "top5", "loss", "validation_top1", "pretrained_top1", "start_top1", "bops", "raw_bops"),
    *("repaired_gates", "memory_kb", "memory_bits", "macs", "parameters"),
}


@pytest.fixture
def workbench(tiny: SimpleNamespace, copied: Path) -> Callable[..., Workbench]:
    """A workbench on a copy of the finished store."""

    def made(*changes: Any) -> Workbench:
        return Workbench(tiny.spec(*changes), Store(copied), None, tiny.Recorder())

    return made


def folder_of(finished: Any, title: str) -> Path:
    return Path(finished.store.unit("runs", finished.record(title)["id"]))


# --- what a run leaves behind ---


@pytest.mark.parametrize("title", RUNS)
def test_a_runs_record_is_complete(finished: Any, title: str) -> None:
    record = finished.record(title)
    method, seed = title.split()
    network = finished.plan.network
    assert (record["kind"], record["status"], record["reason"]) == ("run", "done", None)
    assert (record["model"], record["dataset"], record["method"]) == ("resnet8", "synthetic", method)
    assert record["seed"] == int(seed)
    assert (record["recipe"], record["match"]) == ("common", "hinge")
    budget = None if method == "full_precision" else parse_budget("4bit", network, 0.03)
    assert record["budget"] == (None if budget is None else "4bit")
    assert record["budget_bops"] == (None if budget is None else budget.bops)
    assert record["within_budget"] == (None if budget is None else budget.matches(record["metrics"]["bops"]))
    assert record["metrics"].keys() == METRICS
    assert all(math.isfinite(v) for k, v in record["metrics"].items() if k != "start_top1" or method == "sbs")
    assert all(0 <= record["metrics"][name] <= 100 for name in ("top1", "top5", "validation_top1", "pretrained_top1"))
    assert record["times"].keys() == {"search_seconds", "finetune_seconds", "total_seconds"}
    assert 0 < record["times"]["search_seconds"] < record["times"]["total_seconds"]
    assert record["peak_memory_mb"] is None or record["peak_memory_mb"] > 50
    assert {"torch", "python", "sbs-bench", "optuna"} <= record["versions"].keys()
    assert (record["hardware"]["device"], record["hardware"]["threads"]) == ("cpu", 1)
    assert datetime.fromisoformat(record["started"]) <= datetime.fromisoformat(record["finished"])
    assert record["fingerprint"]["method_source"] == method_source(method)
    assert record["fingerprint"]["cost_counter"] == COUNTER_VERSION
    assert record["knobs"].keys() == ({"strength"} if method in ("sbs", "dnas") else set())
    if method == "sbs":
        assert record["options"]["group_size"] == 4  # also what was not asked for


@pytest.mark.parametrize("title", RUNS)
def test_a_run_is_the_hash_of_its_specification(finished: Any, title: str) -> None:
    folder = folder_of(finished, title)
    assert canonical_hash(read_json(folder / "spec.json")) == folder.name == finished.record(title)["id"]
    files = {"spec.json", "record.json", "policy.json", "raw_policy.json", "curves.json", "search.json", "network.pt"}
    assert {file.name for file in folder.iterdir()} == files


@pytest.mark.parametrize("title", RUNS)
def test_the_policy_costs_what_the_record_says(finished: Any, title: str) -> None:
    folder, metrics = folder_of(finished, title), finished.record(title)["metrics"]
    priced = price(finished.plan.network, load_policy(folder / "policy.json"))
    assert (priced.bops, priced.macs) == (metrics["bops"], metrics["macs"])
    assert (priced.memory_bits, priced.parameters) == (metrics["memory_bits"], metrics["parameters"])
    assert priced.memory_kb == metrics["memory_kb"]
    raw = load_policy(folder / "raw_policy.json")
    assert price(finished.plan.network, raw).bops == metrics["raw_bops"]
    assert (metrics["repaired_gates"] == 0) == (read_json(folder / "policy.json") == raw.to_json())


@pytest.mark.parametrize("title", ["sbs 0", "dnas 1", "fixed 0", "full_precision 1"])
def test_the_stored_network_has_the_recorded_accuracy(finished: Any, title: str) -> None:
    bench = Workbench(finished.spec, finished.store, None, finished.watcher)
    folder, metrics = folder_of(finished, title), finished.record(title)["metrics"]
    network = compress(bench.task.make_model(), bench.task.network, load_policy(folder / "policy.json"))
    network.load_state_dict(load_state(folder / "network.pt"))
    network = execution.on_device(network, bench.device)
    data = bench.task.data
    test, validation = evaluate(network, data, data.test), evaluate(network, data, data.validation)
    assert (test.top1, test.top5, validation.top1) == (metrics["top1"], metrics["top5"], metrics["validation_top1"])
    assert test.loss == pytest.approx(metrics["loss"])


@pytest.mark.parametrize(
    ("title", "phases"),
    [("sbs 0", ["search", "finetune"]), ("dnas 0", ["search", "finetune"]), ("fixed 0", ["finetune"])],
)
def test_curves_have_every_epoch(finished: Any, title: str, phases: list[str]) -> None:
    curves = read_json(folder_of(finished, title) / "curves.json")
    assert [entry["phase"] for entry in curves] == phases
    assert all({"epoch", "epochs", "loss", "accuracy"} <= entry.keys() for entry in curves)


def test_a_pretraining_is_a_state_with_its_accuracy(finished: Any) -> None:
    for unit in finished.plan.pretrainings:
        record = finished.store.record("pretrained", unit.identity)
        assert (record["kind"], record["status"], record["seed"]) == ("pretrained", "done", unit.seed)
        assert 0 <= record["metrics"]["validation_top1"] <= 100
        bench = Workbench(finished.spec, finished.store, None, finished.watcher)
        model = bench.task.make_model()
        model.load_state_dict(load_state(finished.store.unit("pretrained", unit.identity) / "model.pt"))
        top1 = evaluate(model, bench.task.data, bench.task.data.validation).top1
        assert top1 == record["metrics"]["validation_top1"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_tuning_keeps_its_trials_and_its_choice(finished: Any, number: int) -> None:
    unit = finished.plan.tunings[number]
    record = finished.store.record("tuning", unit.identity)
    trials = [read_json(finished.store.unit("tuning", unit.identity) / "trials" / f"{n}.json") for n in range(2)]
    assert (record["status"], record["seed"], record["trials_used"]) == ("done", tuning_seed(0), 2)
    assert record["tuning_seconds"] == pytest.approx(sum(trial["seconds"] for trial in trials))
    inside = [trial for trial in trials if trial["within_budget"]]
    assert inside, "the tiny study no longer lands on its budget; choose other values for it"
    best = max(inside, key=lambda trial: (trial["validation_top1"], -trial["validation_loss"]))
    assert (record["chosen_trial"], record["knobs"]) == (best["number"], best["knobs"])
    assert finished.record(f"{unit.method} 0")["knobs"] == best["knobs"]
    assert [entry["phase"] for entry in best["curves"]] == ["search", "finetune"]


def test_the_final_cost_is_that_of_the_network_that_was_built(finished: Any) -> None:
    bench = Workbench(finished.spec, finished.store, None, finished.watcher)
    network = bench.task.network
    policy = uniform(network, 3).with_layer("stages.0.0.conv1", kept_filters=(0, 5, 9), activation_bits=2)
    cost = final_cost(network, bench.task.make_model(), policy, (3, 16, 16))
    assert cost.to_json()["bops"] == price(network, policy).bops
    assert [layer.macs for layer in cost.layers] == [layer.macs for layer in price(network, policy).layers]


# --- fairness ---


def test_the_test_split_is_looked_at_once_a_run(finished: Any) -> None:
    titles = [f"run {t.split()[0]}{'' if 'full' in t else ' 4bit'} seed {t.split()[1]}" for t in RUNS]
    assert sorted(finished.test_reads) == sorted(titles)


def test_all_methods_of_a_seed_start_from_the_same_weights(finished: Any) -> None:
    runs = {title: (seed, start) for title, seed, start in finished.starts if title.startswith("run")}
    assert len(runs) == len(RUNS)
    by_seed = {seed: {start for s, start in runs.values() if s == seed} for seed in (0, 1)}
    assert [len(starts) for starts in by_seed.values()] == [1, 1]
    assert by_seed[0] != by_seed[1]
    trials = {(seed, start) for title, seed, start in finished.starts if title.startswith("tune")}
    assert len(trials) == 1
    assert trials.isdisjoint(runs.values())


def test_all_methods_of_a_seed_see_the_data_in_the_same_order(finished: Any) -> None:
    def orders(seed: int) -> set[tuple[int, ...]]:
        """For each run its search's and its fine-tuning's."""
        titles = {title for title, _ in finished.orders if title.startswith("run") and title.endswith(f"seed {seed}")}
        assert len(titles) == 4
        return {tuple(order for title, order in finished.orders if title == wanted) for wanted in titles}

    (first,), (second,) = orders(0), orders(1)
    assert len({*first, *second}) == 4
    tuning = {order for title, order in finished.orders if title.startswith("tune")}
    pretraining = [order for title, order in finished.orders if title.startswith("pretrain")]
    assert len(tuning) == 2 and tuning.isdisjoint({*first, *second})
    assert len(set(pretraining)) == 3 and tuning.isdisjoint(pretraining)


def test_seeds_give_different_networks(finished: Any) -> None:
    losses = [finished.record(f"{method} {seed}")["metrics"]["loss"] for method in ("sbs", "fixed") for seed in (0, 1)]
    assert len(set(losses)) == 4


# --- what is not done twice, and what is ---


def test_what_is_done_is_left_alone(workbench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = workbench()
    plan = make_plan(bench.spec)
    monkeypatch.setattr(execution, "write_json", None)
    monkeypatch.setattr(execution, "fit", None)
    pretrain(bench, plan.pretrainings[0])
    execution.tune_method(bench, plan.tunings[0])
    run(bench, plan.runs[0])


@pytest.mark.parametrize(
    "change", [("method_source", lambda _: "another source"), ("COUNTER_VERSION", -1)], ids=["method", "counter"]
)
def test_what_was_made_with_something_else_is_set_aside_and_made_anew(
    workbench: Callable[..., Workbench],
    finished: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = workbench()
    unit = next(u for u in finished.plan.runs if u.method == "fixed")
    folder = bench.store.unit("runs", unit.identity)
    before = read_json(folder / "record.json")
    monkeypatch.setattr(execution, *change)
    run(bench, unit)
    assert "is made anew" in caplog.text
    assert read_json(folder.with_name(f"{folder.name}.stale-1") / "record.json") == before
    after = read_json(folder / "record.json")
    assert after["fingerprint"] != before["fingerprint"]
    assert after["metrics"] == before["metrics"]
    monkeypatch.undo()
    run(bench, unit)
    assert {path.name for path in folder.parent.glob(f"{folder.name}*")} == {
        folder.name,
        f"{folder.name}.stale-1",
        f"{folder.name}.stale-2",
    }


@pytest.mark.parametrize("record", ['{"status": "running"}', '{"status": "interrupted"}', '{"status": "do', None])
def test_what_was_left_unfinished_is_made_anew(
    workbench: Callable[..., Workbench], finished: Any, record: str | None
) -> None:
    bench = workbench()
    unit = next(u for u in finished.plan.runs if u.method == "fixed")
    file = bench.store.unit("runs", unit.identity) / "record.json"
    file.unlink() if record is None else file.write_text(record)
    run(bench, unit)
    assert read_json(file)["metrics"] == finished.record("fixed 0")["metrics"]


# --- how a run can end ---


class Direct(Method):
    """A method that tries nothing; `outcome` says how it ends."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    outcome: ClassVar[BaseException | None] = None
    started: ClassVar[tuple[int, int]]

    def search(self, job: SearchJob) -> SearchResult:
        type(self).started = (torch.initial_seed(), torch.get_num_threads())
        if self.outcome is not None:
            raise self.outcome
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)


@pytest.fixture
def attempt(
    workbench: Callable[..., Workbench], plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[BaseException | None], Path]:
    """Runs `Direct` once with an outcome, and returns the run's folder."""
    plugin("methods", "direct", Direct)
    bench = workbench({"methods": ["direct"], "seeds": [0]})
    (unit,) = make_plan(bench.spec).runs

    def attempted(outcome: BaseException | None) -> Path:
        monkeypatch.setattr(Direct, "outcome", outcome)
        run(bench, unit)
        return bench.store.unit("runs", unit.identity)

    return attempted


@pytest.mark.parametrize(
    "error", [ValueError("first line\nsecond line"), MemoryError("no memory"), KeyError("x"), RuntimeError()], ids=repr
)
def test_a_failure_is_recorded_with_its_traceback(
    attempt: Callable[[BaseException | None], Path], error: Exception
) -> None:
    folder = attempt(error)
    record = read_json(folder / "record.json")
    assert record["status"] == "failed"
    assert record["reason"] == f"{type(error).__name__}: {error}".splitlines()[0]
    assert record["finished"] and record["metrics"] == {}
    trace = (folder / "error.txt").read_text()
    assert trace.startswith("Traceback") and "raise self.outcome" in trace


def test_a_failed_run_is_tried_again_and_its_error_forgotten(attempt: Callable[[BaseException | None], Path]) -> None:
    assert (attempt(ValueError("no luck")) / "error.txt").exists()
    folder = attempt(None)
    assert read_json(folder / "record.json")["status"] == "done"
    assert read_json(folder / "record.json")["reason"] is None
    assert not (folder / "error.txt").exists()


def test_a_budget_out_of_reach_is_an_outcome_of_its_own(attempt: Callable[[BaseException | None], Path]) -> None:
    folder = attempt(UnreachableBudgetError("too little", 12.5))
    record = read_json(folder / "record.json")
    assert (record["status"], record["reason"], record["nearest_bops"]) == ("unreachable", "too little", 12.5)
    assert not (folder / "error.txt").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_interruption_is_recorded_and_goes_on_to_the_caller(
    attempt: Callable[[BaseException | None], Path], error: BaseException, workbench: Callable[..., Workbench]
) -> None:
    with pytest.raises(type(error)):
        attempt(error)
    folder = attempt(None)
    assert read_json(folder / "record.json")["status"] == "done"


def test_the_interrupted_run_says_how_to_go_on(attempt: Callable[[BaseException | None], Path], copied: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(KeyboardInterrupt())
    records = [json.loads(path.read_text()) for path in copied.glob("runs/*/record.json")]
    (record,) = [record for record in records if record["status"] == "interrupted"]
    assert record["reason"] == "interrupted; the same command goes on from here"


def test_a_search_starts_from_its_own_seed_and_threads_whatever_came_before(
    attempt: Callable[[BaseException | None], Path],
) -> None:
    torch.manual_seed(99)
    torch.set_num_threads(2)
    attempt(None)
    assert Direct.started == (derive("search", 0), 1)
    assert torch.initial_seed() == derive("finetune", 0)


def test_a_users_mistake_goes_on_to_the_caller(attempt: Callable[[BaseException | None], Path]) -> None:
    with pytest.raises(BenchError, match="your mistake"):
        attempt(BenchError("your mistake"))


def test_a_full_disk_goes_on_to_the_caller_and_the_run_is_not_done(
    attempt: Callable[[BaseException | None], Path],
) -> None:
    with pytest.raises(OSError, match="No space"):
        attempt(OSError(28, "No space left on device"))
    assert read_json(attempt(None) / "record.json")["status"] == "done"


def test_a_loss_that_is_no_number_ends_the_run_with_the_reason(workbench: Callable[..., Workbench]) -> None:
    bench = workbench({"methods": ["fixed"], "seeds": [0], "finetune": {"lr": 1e30}})
    (unit,) = make_plan(bench.spec).runs
    run(bench, unit)
    record = bench.store.record("runs", unit.identity)
    assert record is not None and record["status"] == "failed"
    assert record["reason"].startswith(("the training loss became nan", "the training loss became inf"))


def test_a_pretraining_that_diverges_fails_what_starts_from_it(workbench: Callable[..., Workbench]) -> None:
    bench = workbench({"methods": ["fixed", "sbs"], "seeds": [0], "pretrain": {"lr": 1e30}})
    plan = make_plan(bench.spec)
    for unit in plan.pretrainings:
        pretrain(bench, unit)
        record = bench.store.record("pretrained", unit.identity)
        assert record is not None and record["status"] == "failed"
    execution.tune_method(bench, plan.tunings[0])
    for unit in plan.runs:
        run(bench, unit)
        record = bench.store.record("runs", unit.identity)
        assert record is not None and record["status"] == "failed"
        expected = "pretraining of seed 0 did not finish: the training loss became" if unit.tuning is None else "tuning"
        assert expected in record["reason"]


def test_a_budget_below_the_cheapest_policy_needs_no_search(
    workbench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = workbench({"methods": ["sbs", "fixed"], "seeds": [0], "budgets": ["0.002x"]})
    plan = make_plan(bench.spec)
    monkeypatch.setattr(execution, "fit", None)
    execution.tune_method(bench, plan.tunings[0])
    for unit in plan.runs:
        run(bench, unit)
        record = bench.store.record("runs", unit.identity)
        assert record is not None and record["status"] == "unreachable"
        assert record["nearest_bops"] > plan.runs[0].budget.bops  # type: ignore[union-attr]
    tuning = bench.store.record("tuning", plan.tunings[0].identity)
    assert tuning is not None and "the cheapest policy of sbs costs" in tuning["reason"]


# --- the start ---


def checkpoint_study(path: Path) -> dict[str, Any]:
    return {"methods": ["fixed"], "seeds": [0], "task": {"checkpoint": str(path)}}


def test_ones_own_checkpoint_is_the_start(
    workbench: Callable[..., Workbench], finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pt"
    unit = next(u for u in finished.plan.pretrainings if u.seed == 0)
    own.write_bytes((finished.store.unit("pretrained", unit.identity) / "model.pt").read_bytes())
    bench = workbench(checkpoint_study(own))
    plan = make_plan(bench.spec)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "fit", None)
        pretrain(bench, plan.pretrainings[0])
    run(bench, plan.runs[0])
    record = bench.store.record("runs", plan.runs[0].identity)
    assert record is not None and record["id"] != finished.record("fixed 0")["id"]
    assert record["metrics"] == finished.record("fixed 0")["metrics"]


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda path: {"conv1.weight": torch.zeros(1)}, r"wrong\.pt' does not fit the model"),
        (lambda path: {"conv1.weight": "text"}, r"wrong\.pt' does not fit the model"),
        (lambda path: {"conv1.weight": Hostile(path / "made")}, "damaged or holds more than tensors"),
        (lambda path: [torch.zeros(1)], "holds a list; expected a dictionary of tensors"),
    ],
    ids=["another model", "no tensors", "hostile", "a list"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    workbench: Callable[..., Workbench], tmp_path: Path, content: Callable[[Path], Any], told: str
) -> None:
    torch.save(content(tmp_path), tmp_path / "wrong.pt")
    bench = workbench(checkpoint_study(tmp_path / "wrong.pt"))
    with pytest.raises(BenchError, match=told) as caught:
        pretrain(bench, make_plan(bench.spec).pretrainings[0])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_from_scratch_means_no_training_before_the_search(
    workbench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch, tiny: SimpleNamespace
) -> None:
    bench = workbench({"task": {"init": "scratch"}})
    monkeypatch.setattr(execution, "fit", None)
    starts = []
    for unit in make_plan(bench.spec).pretrainings:
        pretrain(bench, unit)
        starts.append(tiny.checksum(load_state(bench.store.unit("pretrained", unit.identity) / "model.pt")))
    assert len(set(starts)) == 3


@pytest.mark.parametrize(("fraction", "part"), [(0.001, "validation"), (0.999, "training")])
def test_a_split_without_images_is_the_users_mistake(
    workbench: Callable[..., Workbench], fraction: float, part: str
) -> None:
    bench = workbench({"task": {"validation_fraction": fraction, "train_images": None}})
    told = rf"no {part} images of synthetic are left with task\.validation_fraction = {fraction}; .*--set task\."
    with pytest.raises(BenchError, match=told):
        _ = bench.task


def test_states_that_are_stored_hold_tensors_only(finished: Any, tmp_path: Path) -> None:
    state = load_state(folder_of(finished, "sbs 0") / "network.pt")
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    save_state(tmp_path / "again.pt", state)
    assert load_state(tmp_path / "again.pt").keys() == state.keys()
