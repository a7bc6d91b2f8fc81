"""One run on several devices: the same result as on one, and the same endings. Here: two processes on the CPU."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import replicas
from bench.compression.policy import uniform
from bench.data.task_data import TaskData
from bench.errors import BenchError, NonFiniteLossError
from bench.execution import replica_worker, unit_runner
from bench.execution.context import UnitRequest
from bench.execution.records import new_record
from bench.execution.replica_worker import perform_together
from bench.execution.settings import Limits, RunSettings, check_settings
from bench.execution.stages import WorkResult
from bench.execution.supervisor import supervise, work_in_this_process
from bench.execution.task_loader import TaskLoader
from bench.method import Capabilities, Method, SearchJob, SearchResult, Task
from bench.planning.methods import make_method
from bench.planning.plan import make_plan
from bench.planning.units import Unit
from bench.replicas import ReplicaLostError
from bench.spec.schema import Schedule, StudySpec
from bench.spec.seeds import generator, start_process_deterministically
from bench.store import gpu_leases
from bench.store.files import Store, load_state, read_json
from bench.store.gpu_leases import GpuRequest, gpu_lease
from bench.store.leases import Leases
from bench.store.machine import resolve_device
from bench.store.outcomes import Outcome
from bench.training.loop import Meter, evaluate, fit, reestimate_norms
from bench.training.synced_norm import SyncedNorm2d, synchronise_norms

pytest.importorskip("lightning_fabric", reason="needs Lightning Fabric: pip install 'sbs-bench[ddp]'")

FLOAT64 = 1e-10
"""Of anything in double precision, relative to the largest value; after ten updates it is some 1e-14.

In single precision it is 2e-6 for a float network, and up to 4e-2 where a unit falls on the other side of its ReLU; a
start that is shaken by 6e-8 does the same to one process. Quantized networks have such borders everywhere. Hence all is
compared in double precision, and single precision by its figures."""
FLOAT32 = 1e-2

SMALL: dict[str, Any] = {
    "methods": ["sbs", "fixed"],
    "seeds": [0],
    "task": {"train_images": 60},
    "pretrain": {"batch_size": 12},
    "search": {"batch_size": 12},
    "finetune": {"batch_size": 12},
}
"""Five updates an epoch; DNAS learns its logits on 12 images, so that every batch can be halved."""


@pytest.fixture(scope="module")
def spec(tiny: SimpleNamespace) -> StudySpec:
    made: StudySpec = tiny.spec(SMALL)
    return made


def on_two(function: Callable[..., None], *arguments: Any, start: replicas.Start = "fork") -> None:
    replicas.launch("cpu", 2, function, *arguments, start=start)


def saved_by_both(function: Callable[..., Mapping[str, Any]], folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """What a function returns on each of two replicas."""
    on_two(_save, function, folder, arguments)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _save(device: torch.device, function: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    start_process_deterministically(0, 1)
    torch.save(function(*arguments), folder / f"{replicas.rank()}.pt")


def far(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of two states, each tensor's relative to its largest value."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(1e-3)) for name in one)


# --- what replicas tell each other ---


def _told() -> dict[str, Any]:
    rank = replicas.rank()
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.full((1, 2), float(rank))
    buffers = [torch.full((2,), rank), torch.full((2, 2), float(rank))]
    found: dict[str, Any] = {
        "count": replicas.count(),
        "rank": rank,
        "first": replicas.is_first(),
        "mine": replicas.mine(torch.arange(5)),
        "total": replicas.total(own),
        "mean": replicas.mean(own),
        "of one alone": replicas.mean(own if rank else own * torch.nan, weight=rank),
    }
    replicas.average_gradients(layer.parameters())
    replicas.share(buffers)
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(1.0 + rank), torch.eye(2)[:1], torch.tensor([rank]))
    with replicas.alone():
        found["alone"] = (replicas.count(), replicas.rank(), replicas.is_first(), replicas.total(own))
    for name, choice, tensor in (("choice", str(rank), own * 0), ("tensor", "", own), ("alike", "", own * 0 + 1)):
        try:
            replicas.check_alike("Halve", choice, [tensor])
        except RuntimeError as error:
            found[name] = str(error)
    return found | {"gradient": layer.weight.grad, "bias": layer.bias.grad, "shared": buffers, **meter.figures()}


def test_what_replicas_tell_each_other(tmp_path: Path) -> None:
    first, second = saved_by_both(_told, tmp_path)
    assert (first["count"], first["rank"], first["first"]) == (2, 0, True)
    assert (second["count"], second["rank"], second["first"]) == (2, 1, False)
    assert (first["mine"].tolist(), second["mine"].tolist()) == ([0, 2, 4], [1, 3])
    for told in (first, second):
        assert told["total"].tolist() == [3, 30]
        assert told["mean"].tolist() == [1.5, 15]
        assert told["of one alone"].tolist() == [2, 20]
        assert told["gradient"].tolist() == [[0.5, 0.5]] and told["bias"] is None
        assert [part.unique().tolist() for part in told["shared"]] == [[0], [0]]
        assert [part.dtype for part in told["shared"]] == [torch.int64, torch.float32]
        assert (told["loss"], told["accuracy"]) == (1.5, 50)
        assert told["choice"] == told["tensor"] and "alike" not in told
        assert "replicas of Halve came to different results" in told["choice"]
    assert first["alone"][:3] == (1, 0, True) and second["alone"][:3] == (1, 0, False)
    assert second["alone"][3].tolist() == [2, 20]


def test_in_an_ordinary_process_nothing_happens() -> None:
    values = torch.tensor([1.0])
    assert (replicas.count(), replicas.rank(), replicas.is_first()) == (1, 0, True)
    assert all(function(values) is values for function in (replicas.total, replicas.mean, replicas.mine))
    replicas.check_alike("Halve", "choice", [values])
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(synchronise_norms(nn.Sequential(norm))(x), nn.BatchNorm2d(3)(x))


def _hello(device: torch.device, folder: Path) -> None:
    (folder / f"{device}-{replicas.rank()}-{int(replicas.total(torch.ones(1)))}").touch()


def test_replicas_start_as_they_do_for_gpus(tmp_path: Path) -> None:
    on_two(_hello, tmp_path, start=replicas.start_method("cuda"))
    assert {file.name for file in tmp_path.iterdir()} == {"cpu-0-2", "cpu-1-2"}
    assert replicas.start_method("cpu") == "fork" and replicas.start_method("cuda") == "forkserver"
    assert not {"MASTER_PORT", "MASTER_ADDR", "LOCAL_RANK"} & os.environ.keys()


# --- normalisation ---


def _normalized(momentum: float | None, x: Tensor, factor: Tensor) -> dict[str, Any]:
    """Three updates of a norm's statistics, and the gradients of the last one."""
    norm = nn.BatchNorm2d(4, momentum=momentum).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 5))
    model = synchronise_norms(nn.Sequential(norm))
    x, factor = replicas.mine(x), replicas.mine(factor)
    for step in range(3):
        inputs = (x + step).requires_grad_()
        output = model(inputs)
        model.zero_grad()
        (output.square() * factor).mean().backward()
    replicas.average_gradients(model.parameters())
    gradients = {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    evaluated = model.eval()(x)
    state = model.state_dict()
    return {"output": output.detach(), "eval": evaluated.detach(), "input": inputs.grad, **state, **gradients}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_shared_norm_is_that_of_the_whole_batch(tmp_path: Path, momentum: float | None) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 3, 5, generator=draws, dtype=torch.float64) * 3 + 1000
    factor = torch.rand(6, 4, 3, 5, generator=draws, dtype=torch.float64)
    whole = _normalized(momentum, x, factor)
    both = saved_by_both(_normalized, tmp_path, momentum, x, factor)
    for rank, own in enumerate(both):
        assert own.keys() == whole.keys()
        for name, value in whole.items():
            expected = value[rank::2] if name in ("output", "eval", "input") else value
            # A replica's loss is the mean over half the batch: twice the share of each image.
            expected = 2 * expected if name == "input" else expected
            torch.testing.assert_close(own[name], expected, rtol=1e-10, atol=1e-10)


def test_norms_of_another_kind_are_refused() -> None:
    with pytest.raises(BenchError, match=r"layer '0' is a BatchNorm1d, .*use --devices 1"):
        synchronise_norms(nn.Sequential(nn.BatchNorm1d(3)))


# --- training and searches ---


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision, here and in replicas that are forked from here."""
    normalize = TaskData.normalize
    monkeypatch.setattr(TaskData, "normalize", lambda data, images: normalize(data, images).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def task_of(spec: StudySpec) -> Task:
    """The task as a replica has it."""
    task = TaskLoader(spec, None).task
    assert isinstance(task.make_model().bn1, SyncedNorm2d) == (replicas.count() > 1)
    return task


def _trained(spec: StudySpec) -> dict[str, Any]:
    task = task_of(spec)
    torch.manual_seed(0)
    model = task.make_model()
    curves: list[Mapping[str, float]] = []
    fit(model, task.data, Schedule(epochs=2, batch_size=20, lr=0.05), generator("tests"), curves.append)
    odd = task.data.validation.take(torch.arange(51))
    figures = [evaluate(model, task.data, part) for part in (task.data.test, odd)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_norms(model, task.data, 30)
    return {"state": state, "norms": model.state_dict(), "curves": curves, "figures": figures}


@pytest.mark.usefixtures("double")
def test_training_is_that_of_one_process(spec: StudySpec, tmp_path: Path) -> None:
    one = check_training(spec, tmp_path, FLOAT64)
    first = torch.load(tmp_path / "0.pt", weights_only=False)
    assert far(one["state"], first["state"]) < FLOAT64
    assert far(one["norms"], first["norms"]) < FLOAT64


def test_training_in_single_precision_is_nearly_so(spec: StudySpec, tmp_path: Path) -> None:
    check_training(spec, tmp_path, FLOAT32)


def check_training(spec: StudySpec, folder: Path, tolerance: float) -> dict[str, Any]:
    """Compare figures; replicas among themselves agree in every bit."""
    start_process_deterministically(0, 1)
    one = _trained(spec)
    first, second = saved_by_both(_trained, folder, spec)
    assert far(first["state"], second["state"]) == 0 and first["figures"] == second["figures"]
    for expected, found in zip(one["curves"], first["curves"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=200 * tolerance)
    for expected, found in zip(one["figures"], first["figures"], strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.top1 == pytest.approx(expected.top1, abs=200 * tolerance)
        assert found.top5 == pytest.approx(expected.top5, abs=200 * tolerance)
    return one


SEARCHES: dict[str, dict[str, float]] = {
    "sbs": {"strength": 0.3},
    "sbs_q": {"strength": 0.3},
    "sbs_p": {"strength": 3.0},
    "cost_only": {"strength": 0.3},
    "cost_only_q": {"strength": 0.3},
    "dnas": {"strength": 0.3},
    "multi_path": {"strength": 0.3},
    "joint_mps": {"strength": 0.3},
    "fliqs": {},
    "hesso": {},
    "geta": {"strength": 4.0, "headroom": 0.0},
    "bayesian_bits": {"strength": 6.0},
    "dq": {"strength": 1.8},
    "djpq": {"strength": 0.3},
    "prune_then_quantize": {"strength": 0.3, "first_strength": 3.0, "split": 0.3},
    "quantize_then_prune": {"strength": 3.0, "first_strength": 0.3, "split": 0.3},
}


def _searched(spec: StudySpec) -> dict[str, Any]:
    """Every search from the same weights."""
    task = task_of(spec)
    torch.manual_seed(0)
    state = task.make_model().state_dict()
    plan = make_plan(spec)
    budget = float(plan.runs[0].budget.limit)  # type: ignore[union-attr]
    found: dict[str, Any] = {}
    for name, knobs in SEARCHES.items():
        start_process_deterministically(0, 1)
        job = SearchJob(
            task=task,
            pretrained=state,
            knobs=knobs,
            budget=budget,
            match="hinge",
            schedule=spec.search,
            seed=0,
            report=lambda _: None,
        )
        found[name] = make_method(name, {}).search(job)
    return found


@pytest.mark.usefixtures("double")
def test_searches_are_those_of_one_process(spec: StudySpec, tmp_path: Path) -> None:
    one = _searched(spec)
    first, second = saved_by_both(_searched, tmp_path, spec)
    for name, expected in one.items():
        result = first[name]
        assert make_method(name, {}).capabilities.data_parallel
        assert result.policy == second[name].policy == expected.policy, name
        assert far(result.state, second[name].state) == 0, name
        assert far(expected.state, result.state) < FLOAT64, name
        assert result.clips == pytest.approx(expected.clips, rel=FLOAT64), name
        assert len(result.decisions) == len(expected.decisions)
        for choice, wanted in zip(result.decisions, expected.decisions, strict=True):
            assert replace(choice, margins=()) == replace(wanted, margins=())
            assert choice.margins == pytest.approx(wanted.margins, rel=1e-8, abs=1e-8), name
        assert result.record["start_top1"] == expected.record["start_top1"]
        history = zip(result.record["history"], expected.record["history"], strict=True)
        assert all(told == pytest.approx(wanted, rel=1e-8) for told, wanted in history), name


def _gates_in_evaluation(spec: StudySpec, images: int) -> dict[str, Any]:
    """Activation gates see the whole batch of an evaluation, whose shares may differ in size or be empty."""
    from methods.shared.bit_sharing.quantization import bit_sharing

    x = replicas.mine(torch.rand(images, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    thresholds = torch.zeros(2, dtype=torch.float64)
    _, gates, metric = bit_sharing(x, torch.ones((), dtype=torch.float64), thresholds, (2, 4, 8), "activation")
    return {"gates": gates, "metric": metric}


@pytest.mark.parametrize("images", [7, 1])
def test_a_metric_is_that_of_the_whole_batch(spec: StudySpec, tmp_path: Path, images: int) -> None:
    whole = _gates_in_evaluation(spec, images)
    for own in saved_by_both(_gates_in_evaluation, tmp_path, spec, images):
        torch.testing.assert_close(own, whole, rtol=1e-12, atol=0)


def _forgets(spec: StudySpec) -> dict[str, Any]:
    """Training without averaging."""
    task = task_of(spec)
    model = task.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for images, labels in task.data.training_batches(20, generator("tests")):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    try:
        replicas.check_alike("Forgetful", "", model.state_dict().values())
    except RuntimeError as error:
        return {"error": str(error)}
    return {}


def test_a_method_that_forgets_to_average_is_found_out(spec: StudySpec, tmp_path: Path) -> None:
    for own in saved_by_both(_forgets, tmp_path, spec):
        assert "Forgetful came to different results" in own["error"]


def _odd_batch(spec: StudySpec) -> dict[str, Any]:
    try:
        data = task_of(spec).data
        next(data.training_batches(200, generator("tests")))  # all 60
        next(data.training_batches(33, generator("tests")))
    except BenchError as error:
        return {"error": str(error)}
    return {}


def test_a_batch_that_cannot_be_divided_is_the_users_mistake(spec: StudySpec, tmp_path: Path) -> None:
    for own in saved_by_both(_odd_batch, tmp_path, spec):
        assert own["error"].startswith("a batch of 33 images cannot be divided evenly among 2 devices")


# --- whole studies ---


@pytest.mark.usefixtures("double")
def test_a_study_on_two_devices_is_that_on_one(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretraining, tuning, search, repair, fine-tuning, test; units' processes are this one, for its precision."""
    monkeypatch.setattr(unit_runner, "supervise", lambda request, *_: work_in_this_process(request))
    changes = {"tuning": {"trials": 1}}
    one = tiny.work(tiny.spec(SMALL, changes), tmp_path / "one")
    two = tiny.work(tiny.spec(SMALL, changes, {"devices": 2}), tmp_path / "two", isolated=True)
    assert set(two.watcher.outcomes.values()) == {"done"}
    for title in ("sbs 0", "fixed 0"):
        expected, found = one.record(title), two.record(title)
        folders = [worked.store.unit("runs", worked.record(title)["id"]) for worked in (one, two)]
        assert expected["id"] != found["id"]
        assert expected["files"].keys() == found["files"].keys()
        assert read_json(folders[0] / "policy.json") == read_json(folders[1] / "policy.json")
        states = [load_state(folder / "network.pt") for folder in folders]
        assert far(*states) < FLOAT64
        assert expected["metrics"].keys() == found["metrics"].keys()
        for name, value in expected["metrics"].items():
            assert found["metrics"][name] == (value if value is None else pytest.approx(value, rel=FLOAT64)), name
        assert len(read_json(folders[0] / "curves.json")) == len(read_json(folders[1] / "curves.json"))
        assert not (folders[1] / "checkpoints").exists()


# --- endings ---


class Watching:
    """A watcher that keeps what it receives."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        self.told.append((phase, figures["epoch"]))


@dataclass(frozen=True)
class Pretraining:
    """A pretraining that several replicas perform."""

    request: UnitRequest
    unit: Unit
    record: dict[str, Any]

    def perform(self, watcher: Any) -> WorkResult:
        """Perform it together."""
        return perform_together(self.request, self.unit, self.record, watcher)


@pytest.fixture
def pretraining(tiny: SimpleNamespace, tmp_path: Path) -> Callable[..., tuple[Any, Pretraining]]:
    """A workshop, and a pretraining on two devices in it."""

    def made(*changes: Mapping[str, Any]) -> tuple[Any, Pretraining]:
        workshop = tiny.Workshop(tiny.spec(SMALL, {"devices": 2}, *changes), tmp_path / "store", isolated=True)
        unit = workshop.plan.pretrainings[-1]
        request = workshop.request(unit)
        record = new_record(unit, request.data_checksum, None)
        workshop.store.write_record("pretrained", unit.identity, record)
        return workshop, Pretraining(request, unit, record)

    return made


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not psutil.wait_procs([process for process in left if not _is_server(process)], timeout=5)[1]


def _is_server(process: psutil.Process) -> bool:
    """Whether it is one of the two that Python keeps to start processes from."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return process.ppid() == os.getpid() and ("forkserver" in command or "resource_tracker" in command)


def _misfortune(monkeypatch: pytest.MonkeyPatch, rank: int, what: Callable[[], object]) -> None:
    """Something happens to one replica in the middle of training; replicas are forked from here and inherit it."""
    average = replicas.average_gradients

    def averaged(parameters: Any) -> None:
        if replicas.rank() == rank:
            what()
        average(parameters)

    monkeypatch.setattr(replicas, "average_gradients", averaged)


def _raise(error: BaseException) -> Callable[[], object]:
    def raising() -> object:
        raise error

    return raising


@pytest.mark.parametrize(
    ("rank", "error", "status", "reason"),
    [
        (0, ValueError("broken"), "failed", "ValueError: broken"),
        (1, ValueError("broken"), "failed", "ValueError: broken"),
        (1, RuntimeError("CUDA out of memory"), "oom", "RuntimeError: CUDA out of memory"),
        (1, NonFiniteLossError("the loss is nan"), "diverged", "the loss is nan"),
        (1, BenchError("your mistake"), "failed", "your mistake"),
    ],
    ids=["the first", "the second", "memory", "nan", "mistake"],
)
def test_an_error_in_one_replica_is_the_units(
    pretraining: Any, monkeypatch: pytest.MonkeyPatch, rank: int, error: Exception, status: str, reason: str
) -> None:
    _, work = pretraining()
    monkeypatch.setattr(replica_worker, "_LAST_SECONDS", 0.5)
    _misfortune(monkeypatch, rank, _raise(error))
    result = work.perform(Watching())
    assert (result.outcome.status, result.outcome.error) == (status, "")
    assert result.outcome.reason.startswith(reason)
    assert result.traceback.strip().endswith(str(error)) and "in averaged" in result.traceback


@pytest.mark.parametrize("rank", [0, 1])
def test_a_replica_that_is_killed_is_told_from_one_that_failed(
    pretraining: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    _, work = pretraining()
    _misfortune(monkeypatch, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ReplicaLostError) as caught:
        work.perform(Watching())
    assert (caught.value.index, caught.value.exit_code) == (rank, -signal.SIGKILL)


def test_the_first_replica_tells_of_epochs(pretraining: Any) -> None:
    workshop, work = pretraining({"pretrain": {"epochs": 3}})
    watching = Watching()
    result = work.perform(watching)
    assert result.outcome == Outcome(status="done")
    assert watching.told == [("pretrain", 1), ("pretrain", 2), ("pretrain", 3)]
    metrics = {"validation_top1", "validation_loss", "top1", "top5", "bops", "memory_kb"}
    assert result.record["metrics"].keys() == metrics
    assert result.record["files"].keys() == {"model.pt", "curves.json"}
    assert len(read_json(workshop.folder(work.unit) / "curves.json")) == 3


LONG = {"pretrain": {"epochs": 500}}


def _supervised(workshop: Any, request: UnitRequest, deed: Callable[[], object], stop: Callable[[], bool]) -> Outcome:
    """Supervise a unit, and do something when its lease says that its replicas train, in the first attempt."""
    families: list[list[psutil.Process]] = []

    def act() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            view = Leases(workshop.store.root).read(request.lease_name)
            if view is not None and view.progress.get("phase") == "pretrain":
                unit = psutil.Process(view.holder.pid)
                families.append([unit, *unit.children()])
                deed()
                return
            time.sleep(0.05)

    actor = threading.Thread(target=act)
    actor.start()
    outcome = supervise(request, Limits(), stop, workshop.study_run.modules)
    actor.join()
    assert len(families[0]) == 3
    assert not psutil.wait_procs(families[0], timeout=5)[1]
    return outcome


def test_a_study_that_stops_interrupts_replicas(pretraining: Any) -> None:
    workshop, work = pretraining(LONG)
    stopping = threading.Event()
    outcome = _supervised(workshop, work.request, stopping.set, stopping.is_set)
    assert outcome.status == workshop.record(work.unit)["status"] == "interrupted"


def test_a_killed_replica_costs_one_more_attempt(pretraining: Any) -> None:
    workshop, work = pretraining()

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            view = Leases(workshop.store.root).read(work.request.lease_name)
            children = [] if view is None else psutil.Process(view.holder.pid).children()
            if len(children) == 2:
                children[1].kill()
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = supervise(work.request, Limits(), lambda: False, workshop.study_run.modules)
    killer.join()
    assert outcome.status == "done"
    assert workshop.record(work.unit)["attempt"] == 3  # 1 is the fixture's


def test_replicas_that_diverge_are_recorded_as_ever(pretraining: Any) -> None:
    workshop, work = pretraining({"pretrain": {"lr": 1e30}})
    outcome = supervise(work.request, Limits(), lambda: False, workshop.study_run.modules)
    record = workshop.record(work.unit)
    assert outcome.status == record["status"] == "diverged"
    assert record["reason"].startswith("the training loss became")


def test_a_mistake_inside_replicas_is_the_end_of_the_unit(pretraining: Any, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.pt")
    workshop, work = pretraining({"task": {"checkpoint": str(tmp_path / "wrong.pt")}})
    outcome = supervise(work.request, Limits(), lambda: False, workshop.study_run.modules)
    assert (outcome.status, outcome.error) == ("failed", "") and "does not fit resnet8" in outcome.reason


SLEEPERS = """
import os, pathlib, sys, time, torch
from bench import replicas

def sleep(device, folder):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    replicas.total(torch.ones(1))
    if replicas.is_first():
        time.sleep(60)
    replicas.total(torch.ones(1))  # the other one waits inside a collective

os.setsid()
replicas.launch("cpu", 2, sleep, sys.argv[1], start="fork")
"""


def test_replicas_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    sleepers = [psutil.Process(int(file.name)) for file in tmp_path.iterdir()]
    assert len(sleepers) == 2
    assert {os.getpgid(sleeper.pid) for sleeper in sleepers} == {parent.pid}  # `killpg` finds them
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(sleepers, timeout=10)[1]


# --- interruptions ---


def test_replicas_go_on_from_a_checkpoint(
    pretraining: Any, monkeypatch: pytest.MonkeyPatch, tiny: SimpleNamespace
) -> None:
    monkeypatch.setattr("bench.training.checkpoints.INTERVAL_SECONDS", 0.0)
    workshop, work = pretraining({"pretrain": {"epochs": 4}})
    folder = workshop.folder(work.unit)
    assert work.perform(Watching()).outcome.status == "done"
    expected = tiny.checksum(load_state(folder / "model.pt"))
    kept = sorted((folder / "checkpoints").glob("pretrain.*"))
    assert [file.name.split(".")[1] for file in kept] == ["000003", "000004"]
    kept[1].unlink()
    (folder / "model.pt").unlink()
    watching = Watching()
    assert work.perform(watching).outcome.status == "done"
    assert watching.told == [("pretrain", 4)]
    assert tiny.checksum(load_state(folder / "model.pt")) == expected


# --- what does not go together ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"device": "cuda:1"}, r"device 'cuda:1' is one GPU, but devices is 2; use --device cuda, or --devices 1"),
        (
            {"search": {"batch_size": 33}},
            r"search\.batch_size is 33, which cannot be divided among 2 devices; .*--set search\.batch_size=32",
        ),
        ({"finetune": {"batch_size": 1}}, r"finetune\.batch_size is 1, .*--set finetune\.batch_size=2"),
    ],
    ids=["one GPU", "odd batch", "too small a batch"],
)
def test_combinations_that_contradict(tiny: SimpleNamespace, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BenchError, match=told):
        tiny.spec({"devices": 2}, changes)


class Single(Method):
    """A method that says nothing of several devices."""

    summary = "for tests"
    capabilities = Capabilities(budget="ignored")

    def search(self, job: SearchJob) -> SearchResult:
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)


def test_methods_that_cannot_are_named(tiny: SimpleNamespace, plugin: Callable[..., None]) -> None:
    plugin("methods", "single", Single)
    with pytest.raises(BenchError, match=r"--devices 2: single cannot use several devices in one run; use --devices 1"):
        make_plan(tiny.spec({"devices": 2, "methods": ["sbs", "single"]}))


def test_without_fabric_the_remedy_is_named(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'sbs-bench\[ddp\]'"):
        make_plan(tiny.spec({"devices": 2}))
    make_plan(tiny.spec())


def test_replicas_need_processes(tiny: SimpleNamespace, tmp_path: Path) -> None:
    settings = RunSettings(store=Store(tmp_path), data_dir=None, isolated=False)
    check_settings(settings, "cpu", 1)
    with pytest.raises(BenchError, match=r"--in-process is one process, but --devices 2 needs several"):
        check_settings(settings, "cpu", 2)
    workshop = tiny.Workshop(tiny.spec({"devices": 2}), tmp_path)
    with pytest.raises(BenchError, match="--in-process"):
        workshop.run(workshop.plan.pretrainings[0])


def test_more_devices_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(resolve_device("auto", 2)) == "cuda"
    with pytest.raises(BenchError, match="--devices 3: this machine has 2 CUDA devices; use --devices 2"):
        resolve_device("cuda", 3)


def test_devices_are_part_of_the_identity_when_there_are_several(tiny: SimpleNamespace) -> None:
    plain, same, several = (make_plan(tiny.spec({"devices": count} if count else {})) for count in (0, 1, 2))
    assert plain.runs == same.runs and "devices" not in plain.runs[0].document
    assert several.runs[0].document["devices"] == 2
    assert several.runs[0].identity != plain.runs[0].identity
    assert several.pretrainings[0].identity != plain.pretrainings[0].identity


# --- GPUs ---


@pytest.fixture
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leases:
    monkeypatch.setattr(gpu_leases, "visible_gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(gpu_leases, "_PAUSE_SECONDS", 0.01)
    return Leases(tmp_path)


def holding(leases: Leases, count: int, runs_per_gpu: int = 1, stop: Callable[[], bool] = lambda: False) -> Any:
    return gpu_lease(leases, GpuRequest(device="cuda", gpus=count, runs_per_gpu=runs_per_gpu), "a run", stop)


def test_gpus_are_leased_all_or_none(leases: Leases) -> None:
    tries = iter([False, False, True])
    with holding(leases, 3) as held:
        assert held == "0,1,2"
        with holding(leases, 2, stop=lambda: next(tries)) as none:
            assert none is None
            assert len(list(leases.all())) == 3  # nothing is kept while waiting
        with holding(leases, 1) as last:
            assert last == "3"
    assert not list(leases.all())


def test_runs_that_share_gpus_share_all_of_theirs(leases: Leases) -> None:
    with holding(leases, 3, 2) as one, holding(leases, 3, 2) as other:
        assert one == "0,1,2"
        assert other is not None and other.split(",")[0] == "3" and len(set(other.split(","))) == 3


def test_those_who_need_several_do_not_block_each_other(leases: Leases) -> None:
    served: list[str] = []

    def serve() -> None:
        with holding(leases, 3) as held:
            served.append(held)
            time.sleep(0.02)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(served) == 4
    assert all(len(set(held.split(","))) == 3 for held in served)  # which three depends on who gives back first


def test_too_few_gpus(leases: Leases) -> None:
    told = r"--devices 5 does not exist: .* has 4 CUDA devices; use fewer"
    with pytest.raises(BenchError, match=told), holding(leases, 5):
        pass
