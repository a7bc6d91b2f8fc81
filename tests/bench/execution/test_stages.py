"""One unit of work at a time: what it leaves in the store, and how it ends."""

import errno
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.compression.compress import compress
from bench.compression.policy import FULL_PRECISION_BITS, LayerPolicy, Policy, load_policy, uniform
from bench.costs.accelerator.pricing import price_on
from bench.costs.budget import parse_budget
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Memory
from bench.errors import BenchError, NonFiniteLossError, StudyHaltedError, UnreachableBudgetError
from bench.execution import context as unit_context
from bench.execution.context import Clock, DataUse
from bench.execution.stages import finetuning, pretraining, search
from bench.execution.stages.finetuning import reduced_form
from bench.execution.task_loader import TaskLoader, on_device
from bench.inputs.reading import file_hash
from bench.method import Capabilities, Decision, Method, SearchJob, SearchResult
from bench.planning.builder import stored_unit
from bench.plugins.registry import source_hash
from bench.spec.schema import REPORT_SEEDS, AcceleratorSpec, canonical_hash
from bench.spec.seeds import derive, tuning_seed
from bench.store import staleness
from bench.store.files import load_state, read_checked, read_json, save_state
from bench.store.outcomes import RETRIABLE, StoppedError
from bench.store.staleness import COUNTER_VERSION
from bench.training.loop import evaluate

RUNS = [f"{method} {seed}" for method in ("sbs", "dnas", "fixed", "full_precision") for seed in (0, 1)]
METRICS = {
    *("top1", "top5", "loss", "validation_top1", "pretrained_top1", "start_top1", "bops", "raw_cost"),
    *("repaired_gates", "memory_kb", "memory_bits", "peak_memory_bits", "macs", "parameters", "cost"),
    *("latency_ms", "energy_mj", "trained_updates", "training_images", "evaluated_images", "repair_share"),
}


@pytest.fixture
def workshop(tiny: SimpleNamespace, copied: Path) -> Callable[..., Any]:
    """A workshop in a copy of the finished store."""

    def made(*changes: Any, **settings: Any) -> Any:
        return tiny.Workshop(tiny.spec(*changes), copied, **settings)

    return made


def loader_of(finished: Any) -> TaskLoader:
    return TaskLoader(finished.spec, None)


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
    assert record["budget_cost"] == (None if budget is None else budget.limit)
    assert record["within_budget"] == (None if budget is None else budget.matches(record["metrics"]["bops"]))
    assert record["metrics"].keys() == METRICS
    assert record["filters"] == {layer.name: layer.out_channels for layer in network.layers}
    unknown = {name for name, value in record["metrics"].items() if value is None}
    # The simulated accelerator does not compute at 32 bits.
    without = {"sbs": set[str](), "full_precision": {"start_top1", "latency_ms", "energy_mj"}}
    assert unknown == without.get(method, set[str]() if method == "dnas" else {"start_top1"})
    assert all(math.isfinite(value) for value in record["metrics"].values() if value is not None)
    assert all(0 <= record["metrics"][name] <= 100 for name in ("top1", "top5", "validation_top1", "pretrained_top1"))
    assert record["times"].keys() == {"search_seconds", "finetune_seconds", "total_seconds"}
    assert 0 < record["times"]["search_seconds"] < record["times"]["total_seconds"]
    assert record["peak_memory_mb"] is None or record["peak_memory_mb"] > 50
    assert {"torch", "python", "sbs-bench", "optuna"} <= record["versions"].keys()
    assert (record["hardware"]["device"], record["hardware"]["threads"]) == ("cpu", 1)
    assert datetime.fromisoformat(record["started"]) <= datetime.fromisoformat(record["finished"])
    assert record["fingerprint"]["method_source"] == source_hash("methods", method)
    assert record["fingerprint"]["cost_counter"] == COUNTER_VERSION
    assert record["knobs"].keys() == ({"strength"} if method in ("sbs", "dnas") else set())
    if method == "sbs":
        assert record["options"]["gate_training"] == "alternating"  # also what was not asked for
        assert record["options"]["group_size"] == 4  # the network's own


@pytest.mark.parametrize("title", RUNS)
def test_a_run_is_the_hash_of_its_specification(finished: Any, title: str) -> None:
    folder = folder_of(finished, title)
    stored = read_checked(folder / "spec.json")
    assert stored is not None
    assert canonical_hash(stored["depends_on"]) == stored["id"] == folder.name == finished.record(title)["id"]
    unit = stored_unit(stored)  # all that is needed to work on it
    assert (unit.spec, unit.network) == (finished.spec, finished.plan.network)
    assert unit in finished.plan.runs and unit.identity == folder.name


@pytest.mark.parametrize("title", RUNS)
def test_a_runs_record_lists_its_files_with_their_checksums(finished: Any, title: str) -> None:
    folder, listed = folder_of(finished, title), finished.record(title)["files"]
    assert listed.keys() == {"policy.json", "raw_policy.json", "curves.json", "search.json", "network.pt"}
    assert {file.name for file in folder.iterdir()} == {"spec.json", "record.json", *listed}
    for name, expected in listed.items():
        assert expected == {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}


@pytest.mark.parametrize("title", RUNS)
def test_the_policy_costs_what_the_record_says(finished: Any, title: str) -> None:
    folder, metrics = folder_of(finished, title), finished.record(title)["metrics"]
    priced = price(finished.plan.network, load_policy(folder / "policy.json"))
    assert (priced.bops, priced.macs) == (metrics["bops"], metrics["macs"])
    assert (priced.memory_bits, priced.parameters) == (metrics["memory_bits"], metrics["parameters"])
    assert (priced.memory_kb, priced.peak_memory_bits) == (metrics["memory_kb"], metrics["peak_memory_bits"])
    assert metrics["cost"] == metrics["bops"]  # what these budgets limit
    if metrics["latency_ms"] is not None:
        executed = price_on(finished.spec.accelerator, finished.plan.network, load_policy(folder / "policy.json"))
        assert (executed.latency_ms, executed.energy_mj) == (metrics["latency_ms"], metrics["energy_mj"])
    raw = load_policy(folder / "raw_policy.json")
    assert price(finished.plan.network, raw).bops == metrics["raw_cost"]
    assert (metrics["repaired_gates"] == 0) == (read_json(folder / "policy.json") == raw.to_json())


@pytest.mark.parametrize("title", ["sbs 0", "dnas 1", "fixed 0", "full_precision 1"])
def test_the_stored_network_has_the_recorded_accuracy(finished: Any, title: str) -> None:
    loader = loader_of(finished)
    folder, metrics = folder_of(finished, title), finished.record(title)["metrics"]
    network = compress(loader.task.make_model(), loader.task.network, load_policy(folder / "policy.json"))
    network.load_state_dict(load_state(folder / "network.pt"))
    network = on_device(network, loader.device)
    data = loader.task.data
    test, validation = evaluate(network, data, data.test), evaluate(network, data, data.validation)
    assert (test.top1, test.top5, validation.top1) == (metrics["top1"], metrics["top5"], metrics["validation_top1"])
    assert test.loss == pytest.approx(metrics["loss"])


@pytest.mark.parametrize(
    ("title", "phases"),
    [("sbs 0", ["search", "finetune"]), ("dnas 0", ["search", "finetune"]), ("fixed 0", 2 * ["finetune"])],
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
        loader = loader_of(finished)
        model = loader.task.make_model()
        model.load_state_dict(load_state(finished.store.unit("pretrained", unit.identity) / "model.pt"))
        top1 = evaluate(model, loader.task.data, loader.task.data.validation).top1
        assert top1 == record["metrics"]["validation_top1"]


def two_errors(first: Any, second: Any) -> float:
    """Two standard errors of a difference of two validation accuracies, in points."""
    share = (first["validation_top1"] + second["validation_top1"]) / 200
    return 200 * math.sqrt(2 * share * (1 - share) / first["validation_images"])


@pytest.mark.parametrize("number", [0, 1])
def test_a_tuning_keeps_its_trials_and_its_choice(finished: Any, number: int) -> None:
    unit = finished.plan.tunings[number]
    record = finished.store.record("tuning", unit.identity)
    folders = [finished.store.unit("trials", f"{unit.identity}-{n}") for n in range(2)]
    trials = [read_json(folder / "trial.json") for folder in folders]
    for folder, trial in zip(folders, trials, strict=True):
        kept = read_checked(folder / "record.json")
        assert kept is not None
        assert (kept["id"], kept["kind"]) == (f"{unit.identity}-{trial['number']}", "trial")
        assert (kept["status"], kept["knobs"], kept["files"].keys()) == ("done", trial["knobs"], {"trial.json"})
        assert (kept["method"], kept["seed"]) == (unit.method, unit.seed)
        stored = read_checked(folder / "spec.json")
        assert stored is not None and stored_unit(stored).identity == kept["id"]
    assert (record["status"], record["seed"], record["trials_used"]) == ("done", tuning_seed(0), 2)
    assert record["tuning_seconds"] == pytest.approx(sum(trial["seconds"] for trial in trials))
    inside = [trial for trial in trials if trial["within_budget"]]
    assert inside, "the tiny study no longer lands on its budget; choose other values for it"
    best = max(inside, key=lambda trial: (trial["validation_top1"], -trial["validation_loss"]))
    alike = [trial for trial in inside if best["validation_top1"] - trial["validation_top1"] <= two_errors(best, trial)]
    landed = [trial for trial in alike if trial["repaired_gates"] <= 2]
    best = max(landed, key=lambda trial: (trial["validation_top1"], -trial["validation_loss"]), default=best)
    assert (record["chosen_trial"], record["knobs"]) == (best["number"], best["knobs"])
    assert finished.record(f"{unit.method} 0")["knobs"] == best["knobs"]
    assert [entry["phase"] for entry in best["curves"]] == ["search", "finetune"]


def test_the_final_cost_is_that_of_the_network_that_was_built(finished: Any) -> None:
    loader = loader_of(finished)
    network = loader.task.network
    policy = uniform(network, 3).with_layer("stages.0.0.conv1", kept_filters=(0, 5, 9), activation_bits=2)
    shapes, widths = reduced_form(network, loader.task.make_model(), policy, (3, 16, 16))
    assert [layer.out_channels for layer in shapes.layers][:2] == [16, 3]
    assert all(choice.kept_filters is None for choice in widths.layers.values())
    assert price(shapes, widths) == price(network, policy)
    for measure in (BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())):
        assert measure.price(shapes, widths) == measure.price(network, policy)


# --- fairness ---


def test_the_test_split_is_looked_at_once_a_run(finished: Any) -> None:
    titles = [f"run {t.split()[0]}{'' if 'full' in t else ' 4bit'} seed {t.split()[1]}" for t in RUNS]
    # A pretrained network is a reference in the table; that of the tuning's seed is not, and never sees the test split.
    assert sorted(finished.test_reads) == sorted([*titles, "pretrain seed 0", "pretrain seed 1"])


def test_pretrained_networks_have_the_figures_of_a_reference(finished: Any) -> None:
    for unit in finished.plan.pretrainings:
        metrics = finished.store.record("pretrained", unit.identity)["metrics"]
        if unit.seed >= REPORT_SEEDS:
            assert metrics.keys() == {"validation_top1", "validation_loss"}
            continue
        loader = loader_of(finished)
        model = loader.task.make_model()
        model.load_state_dict(load_state(finished.store.unit("pretrained", unit.identity) / "model.pt"))
        network = loader.task.network
        full = price(network, uniform(network, FULL_PRECISION_BITS))
        assert metrics["top1"] == evaluate(model, loader.task.data, loader.task.data.test).top1
        assert (metrics["bops"], metrics["memory_kb"]) == (full.bops, full.memory_kb)


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


def no_training(patch: pytest.MonkeyPatch) -> None:
    """Let every training fail."""
    for module in (pretraining, finetuning):
        patch.setattr(module, "fit", None)


def one(shop: Any, method: str) -> Any:
    return next(unit for unit in shop.plan.runs if (unit.method, unit.seed) == (method, 0))


def test_what_is_done_is_left_alone(workshop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shop = workshop()
    monkeypatch.setattr(unit_context, "write_json", None)
    no_training(monkeypatch)
    for unit in (shop.plan.pretrainings[0], shop.plan.tunings[0], shop.plan.runs[0]):
        before = (shop.folder(unit) / "record.json").stat().st_mtime_ns
        assert shop.run(unit).status == "done"
        assert (shop.folder(unit) / "record.json").stat().st_mtime_ns == before


def other_source_of(changed: str) -> Callable[[Any, str], str]:
    """What the code of plug-ins hashes to when all of one kind are changed."""
    return lambda kind, name: "another source" if kind == changed else source_hash(kind, name)


def archived(shop: Any, unit: Any) -> list[str]:
    """The folders of stale results, in the order in which they were archived."""
    folder = shop.folder(unit)
    return sorted(path.name.removeprefix(folder.name) for path in folder.parent.glob(f"{folder.name}.*"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("source_hash", other_source_of("methods")), "method source changed"),
        (("source_hash", other_source_of("models")), "model source changed"),
        (("COUNTER_VERSION", -1), "cost counter changed"),
    ],
    ids=["method", "model", "counter"],
)
def test_what_was_made_with_something_else_is_archived_and_made_again(
    workshop: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = workshop()
    unit = one(shop, "fixed")
    folder = shop.folder(unit)
    before = shop.record(unit)
    monkeypatch.setattr(staleness, *change)
    assert shop.run(unit).status == "done"
    assert f"run fixed 4bit seed 0 is made again: {reason}" in caplog.text
    assert read_checked(folder.with_name(f"{folder.name}.stale-1") / "record.json") == before
    after = shop.record(unit)
    assert after["fingerprint"] != before["fingerprint"]
    assert after["metrics"] == before["metrics"]
    monkeypatch.undo()
    shop.run(unit)
    assert archived(shop, unit) == [".stale-1", ".stale-2"]
    assert shop.record(unit)["fingerprint"] == before["fingerprint"]


@pytest.mark.parametrize("name", ["policy.json", "curves.json", "search.json", "network.pt"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "one byte"])
def test_a_result_with_a_damaged_file_is_archived_and_made_again(
    workshop: Callable[..., Any], finished: Any, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    shop = workshop()
    unit = one(shop, "fixed")
    file = shop.folder(unit) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1]))
    assert shop.run(unit).status == "done"
    assert f"is made again: {name} is {'missing' if damage == 'missing' else 'damaged'}" in caplog.text
    assert archived(shop, unit) == [".stale-1"]
    assert shop.record(unit)["metrics"] == finished.record("fixed 0")["metrics"]
    assert file.stat().st_size == len(content)


@pytest.mark.parametrize("status", ["running", "interrupted", "killed", "skipped"])
def test_what_says_nothing_about_the_unit_is_worked_on_again(
    workshop: Callable[..., Any], finished: Any, status: str
) -> None:
    shop = workshop()
    unit = one(shop, "fixed")
    shop.store.write_record("runs", unit.identity, {"status": status, "reason": "x", "metrics": {}, "attempt": 3})
    assert shop.run(unit).status == "done"
    assert archived(shop, unit) == []
    assert shop.record(unit)["metrics"] == finished.record("fixed 0")["metrics"]
    assert shop.record(unit)["attempt"] == 4


@pytest.mark.parametrize("record", ['{"status": "done"}', '{"status": "do', "[]", None])
def test_a_record_that_cannot_be_trusted_is_made_anew(
    workshop: Callable[..., Any], finished: Any, record: str | None
) -> None:
    shop = workshop()
    unit = one(shop, "fixed")
    file = shop.folder(unit) / "record.json"
    file.unlink() if record is None else file.write_text(record)
    assert shop.run(unit).status == "done"
    assert shop.record(unit)["metrics"] == finished.record("fixed 0")["metrics"]
    assert archived(shop, unit) == ([] if record is None else [".stale-1"])


@pytest.mark.parametrize("name", ["trial.json", "record.json"])
def test_a_damaged_trial_of_an_open_tuning_is_made_again_and_nothing_else(
    workshop: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shop = workshop()
    unit = shop.plan.tunings[0]
    before = shop.record(unit)
    shop.store.write_record("tuning", unit.identity, before | {"status": "interrupted"})
    (shop.store.unit("trials", f"{unit.identity}-1") / name).write_text("{")
    searched = []
    monkeypatch.setattr(search, "SearchJob", lambda **fields: searched.append(fields["knobs"]) or SearchJob(**fields))
    assert shop.run(unit).status == "done"
    assert len(searched) == 1
    after = shop.record(unit)
    for key in ("knobs", "chosen_trial", "trials_used"):
        assert after[key] == before[key]
    for number in (0, 1):
        kept = [read_json(store.unit("trials", f"{unit.identity}-{number}") / "trial.json") for store in
                (shop.store, finished.store)]  # fmt: skip
        assert kept[0] | {"seconds": 0} == kept[1] | {"seconds": 0}


def test_a_damaged_start_is_refused_and_made_anew_by_the_next_command(
    tiny: SimpleNamespace, workshop: Callable[..., Any], finished: Any, copied: Path
) -> None:
    shop = workshop()
    unit = one(shop, "fixed")
    (shop.folder(unit) / "record.json").unlink()
    file = shop.folder(unit.pretraining) / "model.pt"
    content = file.read_bytes()
    file.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    outcome = shop.run(unit)
    assert outcome.status == "skipped"
    reason = "pretraining of seed 0 is damaged (model.pt is damaged); run the same command again to repeat it"
    assert outcome.reason == reason
    worked = tiny.work(tiny.spec({"methods": ["fixed"], "seeds": [0]}), copied)
    assert worked.watcher.outcomes == {"pretrain seed 0": "done", "run fixed 4bit seed 0": "done"}
    assert worked.record("fixed 0")["metrics"] == finished.record("fixed 0")["metrics"]


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


Attempt = Callable[..., Path]


@pytest.fixture
def attempt(workshop: Callable[..., Any], plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Runs `Direct` once with an outcome, and returns the run's folder."""
    plugin("methods", "direct", Direct)

    def attempted(outcome: BaseException | None, **settings: Any) -> Path:
        shop = workshop({"methods": ["direct"], "seeds": [0]}, **settings)
        (unit,) = shop.plan.runs
        monkeypatch.setattr(Direct, "outcome", outcome)
        try:
            shop.run(unit)
        finally:
            assert list(shop.study_run.leases.all()) == []
        return Path(shop.folder(unit))

    return attempted


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("first line\nsecond line"), "failed"),
        (KeyError("x"), "failed"),
        (RuntimeError(), "failed"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.txt"), "failed"),
        (MemoryError("no memory"), "oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
    ],
    ids=repr,
)
def test_a_failure_is_recorded_with_its_traceback(attempt: Attempt, error: Exception, status: str) -> None:
    folder = attempt(error)
    record = read_checked(folder / "record.json")
    assert record is not None
    assert record["status"] == status
    reason, _, where = record["reason"].partition(" (tests/bench/execution/test_stages.py:")
    assert reason == f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    assert where[:-1].isdigit() and where.endswith(")")
    assert record["finished"] and record["metrics"] == {}
    trace = (folder / "error.txt").read_text()
    assert trace.startswith("Traceback") and "raise self.outcome" in trace


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no luck"), "failed"), (MemoryError(), "oom"), (NonFiniteLossError("nan"), "diverged")],
    ids=repr,
)
def test_a_failure_stands_until_it_is_to_be_tried_again_and_is_then_forgotten(
    attempt: Attempt, error: Exception, status: str
) -> None:
    assert (attempt(error) / "error.txt").exists() == (status != "diverged")
    for retry in ([], sorted(RETRIABLE - {status})):  # standing, though it would succeed
        record = read_checked(attempt(None, retry=frozenset(retry)) / "record.json")
        assert record is not None and record["status"] == status
    folder = attempt(None, retry=frozenset({status}))
    record = read_checked(folder / "record.json")
    assert record is not None
    assert (record["status"], record["reason"], record["attempt"]) == ("done", None, 2)
    assert not (folder / "error.txt").exists()


def test_a_failure_with_another_source_is_tried_again(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(ValueError("a mistake in the method"))
    monkeypatch.setattr(staleness, "source_hash", lambda *_: "the mistake is mended")
    record = read_checked(attempt(None) / "record.json")
    assert record is not None and record["status"] == "done"


def test_a_budget_out_of_reach_is_an_outcome_of_its_own(attempt: Attempt) -> None:
    folder = attempt(UnreachableBudgetError("too little", 12.5))
    record = read_checked(folder / "record.json")
    assert record is not None
    assert (record["status"], record["reason"], record["nearest_cost"]) == ("unreachable", "too little", 12.5)
    assert not (folder / "error.txt").exists()
    again = read_checked(attempt(None, retry=RETRIABLE) / "record.json")
    assert again == record  # a result: it is not tried again


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoppedError()], ids=repr)
def test_an_interruption_is_recorded_and_goes_on_to_the_caller(
    attempt: Attempt, error: BaseException, copied: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(error)
    records = [read_checked(path) or {} for path in copied.glob("runs/*/record.json")]
    (record,) = [record for record in records if record["status"] == "interrupted"]
    assert record["reason"] == "interrupted; run the same command again to continue"
    record = read_checked(attempt(None) / "record.json") or {}
    assert (record["status"], record["reason"]) == ("done", None)


def test_a_search_starts_from_its_own_seed_and_threads_whatever_came_before(attempt: Attempt) -> None:
    torch.manual_seed(99)
    torch.set_num_threads(2)
    attempt(None)
    assert Direct.started == (derive("search", 0), 1)
    assert torch.initial_seed() == derive("finetune", 0)


def test_what_fine_tuning_starts_from_does_not_depend_on_what_the_process_did_before(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted after its search continues in a process that has not searched."""
    starts: list[tuple[int, int]] = []
    original = search._search

    def calibrate(network: nn.Module, images: Tensor) -> None:
        starts.append((torch.initial_seed(), torch.get_num_threads()))

    def searched(*arguments: Any) -> Any:
        result = original(*arguments)
        torch.manual_seed(99)
        torch.set_num_threads(2)
        return result

    monkeypatch.setattr(finetuning, "calibrate", calibrate)
    monkeypatch.setattr(search, "_search", searched)
    attempt(None)
    assert starts == [(derive("prepare", 0), 1)]


def test_a_mistake_of_a_method_is_the_end_of_its_unit(attempt: Attempt) -> None:
    folder = attempt(BenchError("your mistake"))
    record = read_checked(folder / "record.json") or {}
    assert record["status"] == "failed" and record["reason"].startswith("your mistake (tests/bench/")
    assert "your mistake" in (folder / "error.txt").read_text()


def test_what_all_units_need_goes_on_to_the_caller(attempt: Attempt, copied: Path) -> None:
    with pytest.raises(BenchError, match="your mistake"):
        attempt(StudyHaltedError("your mistake"))
    records = [read_checked(path) or {} for path in copied.glob("runs/*/record.json")]
    (record,) = [record for record in records if record["status"] != "done"]
    assert (record["status"], record["reason"]) == ("failed", "your mistake")
    assert not list(copied.rglob("error.txt"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_goes_on_to_the_caller_and_the_run_is_not_done(attempt: Attempt, copied: Path, number: int) -> None:
    with pytest.raises(BenchError, match=rf"{os.strerror(number)}: .*model\.pt"):
        attempt(OSError(number, os.strerror(number), str(copied / "model.pt")))
    record = read_checked(attempt(None) / "record.json")
    assert record is not None and record["status"] == "done"


def test_a_search_that_returns_nothing_has_failed(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Direct, "search", lambda *_: None)
    record = read_checked(attempt(None) / "record.json")
    assert record is not None
    assert record["status"] == "failed" and record["reason"].startswith("the search of Direct (tests/bench/execution/")
    assert record["reason"].endswith("it is a NoneType; expected a bench.api.SearchResult")


def test_a_loss_that_is_no_number_ends_the_run_with_the_reason(workshop: Callable[..., Any]) -> None:
    shop = workshop({"methods": ["fixed"], "seeds": [0], "finetune": {"lr": 1e30}})
    (unit,) = shop.plan.runs
    outcome = shop.run(unit)
    record = shop.record(unit)
    assert record["status"] == outcome.status == "diverged"
    assert record["reason"].startswith(("the training loss became nan", "the training loss became inf"))
    assert not (shop.folder(unit) / "error.txt").exists()


def test_a_pretraining_that_diverges_fails_what_starts_from_it(workshop: Callable[..., Any]) -> None:
    shop = workshop({"methods": ["fixed", "sbs"], "seeds": [0], "pretrain": {"lr": 1e30}})
    for unit in shop.plan.pretrainings:
        assert shop.run(unit).status == shop.record(unit)["status"] == "diverged"
    assert shop.run(shop.plan.tunings[0]).status == "skipped"
    for unit in shop.plan.runs:
        assert shop.run(unit).status == shop.record(unit)["status"] == "skipped"
        expected = "pretraining of seed 0 did not finish: the training loss became" if unit.tuning is None else "tuning"
        assert expected in shop.record(unit)["reason"]


def test_a_trial_that_diverges_is_one_trial_less(
    workshop: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = workshop({"tuning": {"trials": 3}})
    unit = shop.plan.tunings[0]
    original = finetuning.fit

    def fit(*arguments: Any) -> None:
        if len(list(shop.folder(unit).glob("trials/*/record.json"))) == 2:
            raise NonFiniteLossError("the training loss became nan")
        original(*arguments)

    monkeypatch.setattr(finetuning, "fit", fit)
    assert shop.run(unit).status == "done"
    statuses = [(shop.store.record("trials", f"{unit.identity}-{n}") or {})["status"] for n in range(3)]
    assert statuses == ["done", "diverged", "done"]
    record = shop.record(unit)
    assert (record["trials_used"], record["trials_diverged"]) == (2, 1)
    assert record["chosen_trial"] in (0, 2)
    completed = [read_json(shop.folder(unit) / "trials" / n / "trial.json")["seconds"] for n in "02"]
    lost = (shop.store.record("trials", f"{unit.identity}-1") or {})["seconds"]
    assert lost > 0
    assert record["tuning_seconds"] == pytest.approx(sum(completed) + lost)


def test_a_trial_that_fails_ends_its_tuning_with_its_number_and_reason(
    workshop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = workshop({"tuning": {"trials": 3}, "methods": ["sbs"], "seeds": [0]})
    unit, run = shop.plan.tunings[0], shop.plan.runs[0]
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "calibrate", None)
        outcome = shop.run(unit)
    assert (outcome.status, shop.record(unit)["status"]) == ("failed", "failed")
    assert shop.record(unit)["reason"] == outcome.reason
    assert outcome.reason.startswith("trial 1: TypeError: 'NoneType' object is not callable (bench/execution/stages/")
    assert shop.run(run).reason == f"tuning of sbs did not finish: {outcome.reason}"
    assert shop.run(unit).status == "failed"  # it stands
    again = workshop({"tuning": {"trials": 3}, "methods": ["sbs"], "seeds": [0]}, retry=RETRIABLE)
    assert again.run(unit).status == again.run(run).status == "done"


def test_a_budget_below_the_cheapest_policy_needs_no_search(
    workshop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = workshop({"methods": ["sbs", "fixed"], "seeds": [0], "budgets": ["0.002x"]})
    no_training(monkeypatch)
    shop.run(shop.plan.tunings[0])
    for unit in shop.plan.runs:
        shop.run(unit)
        record = shop.record(unit)
        assert record["status"] == "unreachable"
        assert record["nearest_cost"] > unit.budget.limit
    assert "the cheapest policy of sbs costs" in shop.record(shop.plan.tunings[0])["reason"]


# --- what a search leaves is kept as it was ---


def test_the_outcome_of_a_search_comes_back_as_it_was() -> None:
    decisions = [
        Decision(layer="conv1", what="weight_bits", options=(2, 4, 8), chosen=1, margins=(0.1, 1e-17)),
        Decision(layer="conv1", what="filters", options=(0, 1), chosen=0, margins=(-3.0,), filters=(4, 5)),
    ]
    layer = LayerPolicy(weight_bits=4, activation_bits=8, kept_filters=(0, 1, 2, 3))
    result = SearchResult(
        policy=Policy(model="m", dataset="d", layers={"conv1": layer}),
        state={"w": torch.randn(3), "n": torch.tensor(7)},
        clips={"conv1.weight": 0.1 + 0.2},
        normalized_weights=False,
        decisions=decisions,
        record={"history": [{"epoch": 1, "loss": 1 / 3}], "start_top1": 12.5},
    )
    kept = search._FinishedSearch(result=result, peak_memory_mb=1.5).state_dict()
    found = search._FinishedSearch()
    found.load_state_dict(kept)
    assert found.result is not None and found.peak_memory_mb == 1.5
    assert all(torch.equal(found.result.state[name], value) for name, value in result.state.items())
    for name in ("policy", "clips", "normalized_weights", "decisions", "record"):
        assert getattr(found.result, name) == getattr(result, name), name


def test_the_clock_counts_phases_over_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(unit_context.time, "perf_counter", lambda: now[0])
    first = Clock()
    with first.phase("search"):
        now[0] += 5
        kept = first.state_dict()
        now[0] += 100  # lost with the process
    second = Clock()
    with second.phase("search"):
        now[0] += 2  # getting to where it was
        second.load_state_dict(kept)
        now[0] += 1
    with pytest.raises(ValueError, match="x"), second.phase("finetune"):
        now[0] += 4
        raise ValueError("x")
    now[0] += 50  # between phases
    assert (second.seconds("search"), second.seconds("finetune"), second.total()) == (8, 4, 12)
    assert second.seconds("evaluate") == 0


def test_an_interruption_adds_nothing_to_what_was_drawn() -> None:
    drawn: Counter[str] = Counter()
    first = DataUse(lambda: drawn)
    with first.phase("search"):
        drawn.update(training_batches=3, evaluated_images=7)
        kept = first.state_dict()
        drawn.update(training_batches=100)  # lost with the process
    drawn.clear()
    second = DataUse(lambda: drawn)
    with second.phase("search"):
        drawn.update(evaluated_images=7)  # getting to where it was
        second.load_state_dict(kept)
        drawn.update(training_batches=2)
    drawn.update(training_batches=50)  # between phases
    with second.phase("finetune"):
        drawn.update(training_batches=4)
    assert second.of("search") == {"training_batches": 5, "evaluated_images": 7}
    assert second.of("finetune") == {"training_batches": 4}
    assert second.of("evaluate") == {}


# --- the start ---


def checkpoint_study(path: Path) -> dict[str, Any]:
    return {"methods": ["fixed"], "seeds": [0], "task": {"checkpoint": str(path)}}


def test_ones_own_checkpoint_is_the_start(
    workshop: Callable[..., Any], finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pt"
    unit = next(u for u in finished.plan.pretrainings if u.seed == 0)
    own.write_bytes((finished.store.unit("pretrained", unit.identity) / "model.pt").read_bytes())
    shop = workshop(checkpoint_study(own))
    with monkeypatch.context() as patch:
        no_training(patch)
        shop.run(shop.plan.pretrainings[0])
    shop.run(shop.plan.runs[0])
    record = shop.record(shop.plan.runs[0])
    assert record["id"] != finished.record("fixed 0")["id"]
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
        (
            lambda path: {"conv1.weight": torch.zeros(1)},
            r"wrong\.pt' does not fit resnet8: it lacks 'bn1\.weight', .* and \d+ more",
        ),
        (lambda path: {"conv1.weight": "text"}, r"wrong\.pt' does not fit resnet8: it lacks"),
        (lambda path: {"conv1.weight": Hostile(path / "made")}, "damaged or holds more than tensors"),
        (lambda path: [torch.zeros(1)], "holds a list; expected a dictionary of tensors"),
    ],
    ids=["another model", "no tensors", "hostile", "a list"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    workshop: Callable[..., Any], tmp_path: Path, content: Callable[[Path], Any], told: str
) -> None:
    torch.save(content(tmp_path), tmp_path / "wrong.pt")
    shop = workshop(checkpoint_study(tmp_path / "wrong.pt"))
    outcome = shop.run(shop.plan.pretrainings[0])
    assert (outcome.status, outcome.error) == ("failed", "")
    assert re.search(told, outcome.reason) and outcome.reason.isprintable()
    assert not (tmp_path / "made").exists()


def test_from_scratch_means_no_training_before_the_search(
    workshop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny: SimpleNamespace
) -> None:
    shop = workshop({"task": {"init": "scratch"}})
    no_training(monkeypatch)
    starts = []
    for unit in shop.plan.pretrainings:
        shop.run(unit)
        starts.append(tiny.checksum(load_state(shop.folder(unit) / "model.pt")))
    assert len(set(starts)) == 3


@pytest.mark.parametrize(("fraction", "part"), [(0.001, "validation"), (0.999, "training")])
def test_a_split_without_images_is_the_users_mistake(
    tiny: SimpleNamespace, finished: Any, fraction: float, part: str
) -> None:
    spec = tiny.spec({"task": {"validation_fraction": fraction, "train_images": None}})
    loader = TaskLoader(spec, None)
    told = rf"no {part} images of synthetic are left with task\.validation_fraction = {fraction}; .*--set task\."
    with pytest.raises(BenchError, match=told):
        _ = loader.task


def test_states_that_are_stored_hold_tensors_only(finished: Any, tmp_path: Path) -> None:
    state = load_state(folder_of(finished, "sbs 0") / "network.pt")
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    save_state(tmp_path / "again.pt", state)
    assert load_state(tmp_path / "again.pt").keys() == state.keys()
