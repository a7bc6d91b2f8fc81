"""`bench doctor`: each problem is provoked, found, and comes with what to do about it."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from bench.cli.main import bench
from bench.diagnostics.doctor import doctor
from bench.diagnostics.doctor import environment as doctor_environment
from bench.diagnostics.doctor import finding as finding_module
from bench.diagnostics.doctor import health as doctor_health
from bench.diagnostics.doctor import plugins as doctor_plugins
from bench.diagnostics.doctor import store as doctor_store
from bench.diagnostics.doctor.doctor import examine
from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, DoctorRequest, Finding, probe_torch
from bench.diagnostics.wording import some
from bench.errors import BenchError
from bench.planning.networks import model_shape
from bench.plugins.entry_points import Kind
from bench.spec.sources import build
from bench.store.files import Store, write_json, write_text
from bench.store.leases import Holder, Leases
from datasets.imagefolder import ImageFolder
from datasets.imagenet import ImageNet
from tests import fake_store
from tests.bench.costs.tables import write_table
from tests.datasets.images import make_folder

FakeStore = fake_store.FakeStore
GOOD: dict[str, Any] = {"torch": "2.12.1", "torchvision": "0.27.1", "cuda": None, "cards": []}
DEAD = {"host": socket.gethostname(), "boot": "another", "pid": 1, "born": "0"}


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    """A sound store with one study."""
    fake = FakeStore(tmp_path / "store")
    fake.seeds("fixed", [70.0, 71.0])
    fake.tuning("sbs", [0.2, 0.4])
    fake.document()
    return fake


def doctor_request(root: Path, torch: Mapping[str, Any] = GOOD, **fields: Any) -> DoctorRequest:
    """A request for which the probe of PyTorch has been made."""
    made = DoctorRequest(store=Store(root), **fields)
    made.__dict__["torch"] = torch
    return made


def only(findings: Any) -> Finding:
    """The one finding of a check."""
    (finding,) = findings
    assert len(finding.found.splitlines()) == 1
    assert finding.status != PROBLEM or finding.remedy
    return finding


# --- the machine and what is installed ---


def test_this_environment_is_sound(tmp_path: Path) -> None:
    seen = doctor_request(tmp_path)
    checks = (doctor_environment.python, doctor_environment.torch, doctor_environment.torchvision)
    for check in (*checks, doctor_environment.dependencies, doctor_environment.devices, doctor_environment.threads):
        assert only(check(seen)).status == OK


def test_a_python_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_environment.platform, "python_version", lambda: "3.10.4")
    finding = only(doctor_environment.python(doctor_request(tmp_path)))
    assert (finding.status, finding.found) == (PROBLEM, "3.10.4")
    assert "with Python >=3.11" in finding.remedy


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that packages have these versions, or are missing."""
    original = doctor_environment.metadata.version

    def version(package: str) -> str:
        found = versions.get(package, "")
        if found is None:
            raise PackageNotFoundError(package)
        return found or original(package)

    monkeypatch.setattr(doctor_environment.metadata, "version", version)


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (
            "OSError: libcudart.so.13: cannot open",
            "cannot be imported: OSError: libcudart",
            "--force-reinstall torch==",
        ),
        ("importing it ends the process (SIGILL)", "ends the process (SIGILL)", "pip install --force-reinstall"),
    ],
)
def test_a_torch_that_does_not_import(tmp_path: Path, error: str, found: str, remedy: str) -> None:
    seen = doctor_request(tmp_path, {"errors": {"torch": error}})
    finding = only(doctor_environment.torch(seen))
    assert finding.status == PROBLEM and found in finding.found and remedy in finding.remedy
    assert only(doctor_environment.devices(seen)).status == WARN
    assert only(doctor_plugins.plugins(seen)).found == "cannot be checked until torch can be imported"
    assert only(doctor_plugins.data_sets(seen)).status == WARN
    assert only(doctor_environment.torchvision(seen)).status == OK  # its version fits; torch is what is broken


def test_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch=None)
    seen = doctor_request(tmp_path, {"errors": {"torch": "ModuleNotFoundError: No module named 'torch'"}})
    assert only(doctor_environment.torch(seen)).remedy == "pip install torch"


def test_a_torchvision_for_another_torch_names_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_environment.metadata, "requires", lambda _: ["numpy", "torch (==2.12.1)"])
    installed(monkeypatch, torch="2.11.0+cpu", torchvision="0.27.1")
    seen = doctor_request(
        tmp_path, GOOD | {"errors": {"torchvision": "RuntimeError: operator torchvision::nms does not exist"}}
    )
    finding = only(doctor_environment.torchvision(seen))
    assert finding.status == PROBLEM
    assert finding.found == "torchvision 0.27.1 needs torch==2.12.1; torch 2.11.0+cpu is installed"
    assert finding.remedy == "pip install torch==2.12.1 torchvision==0.27.1"
    installed(monkeypatch, torch="2.12.1+cu130", torchvision="0.27.1")
    finding = only(doctor_environment.torchvision(seen))
    assert finding.found == "was built for another torch than 2.12.1+cu130"
    assert finding.remedy == "pip install --force-reinstall torch==2.12.1 torchvision==0.27.1"


def test_a_torchvision_that_is_missing_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = doctor_request(tmp_path, GOOD | {"errors": {"torchvision": "ImportError: libjpeg\nmore"}})
    assert only(doctor_environment.torchvision(seen)).found == "cannot be imported: ImportError: libjpeg"
    installed(monkeypatch, torchvision=None)
    assert only(doctor_environment.torchvision(seen)).remedy == "pip install torchvision"


def test_the_probe_reports_versions_cards_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake packages are imported, since importing the real ones takes seconds."""
    card = "SimpleNamespace(name='H200', total_memory=5)"
    cuda = f"is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda _: {card}"
    torch = (
        f"from types import SimpleNamespace\ncuda = SimpleNamespace({cuda})\nversion = SimpleNamespace(cuda='13.0')\n"
    )
    write_text(tmp_path / "torch.py", f"{torch}__version__ = '2.12.1'\nprint('noise')\n")
    write_text(tmp_path / "torchvision.py", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe_torch() == {
        "torch": "2.12.1",
        "cuda": "13.0",
        "cards": [["H200", 5]],
        "errors": {"torchvision": "RuntimeError: operator torchvision::nms does not exist"},
    }


def test_the_probe_survives_what_its_process_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding_module, "_PROBE", "import os; os.kill(os.getpid(), 4)")
    assert probe_torch() == {"errors": {"torch": "importing it ends the process (SIGILL)"}}
    monkeypatch.setattr(finding_module, "_PROBE", "import time; time.sleep(9)")
    monkeypatch.setattr(finding_module, "_PROBE_SECONDS", 0.1)
    assert "takes more than" in probe_torch()["errors"]["torch"]


def test_packages_that_are_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, rich=None, click="7.0", optuna="6.1")
    found = {finding.remedy: finding for finding in doctor_environment.dependencies(doctor_request(tmp_path))}
    assert set(found) == {"pip install 'rich>=14.2'", "pip install 'click>=8.1'", "pip install 'optuna<6,>=5.0'"}
    assert found["pip install 'rich>=14.2'"].found == "rich>=14.2 is needed; it is not installed"
    assert found["pip install 'click>=8.1'"].found == "click>=8.1 is needed; 7.0 is installed"


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = GOOD | {"cards": [["NVIDIA H200", 150_000_000_000]]}
    assert "NVIDIA H200 (150 GB)" in only(doctor_environment.devices(doctor_request(tmp_path, cards))).found
    seen = doctor_request(tmp_path, cards)
    seen.__dict__["spec"] = build([{"device": "cuda:1"}])
    finding = only(doctor_environment.devices(seen))
    assert finding.status == PROBLEM and "device 'cuda:1' is asked for" in finding.found
    monkeypatch.setattr(doctor_environment.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    finding = only(doctor_environment.devices(doctor_request(tmp_path)))
    assert finding.status == WARN and "this torch is built without CUDA" in finding.found


def test_more_threads_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_environment, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    finding = only(doctor_environment.threads(doctor_request(tmp_path)))
    assert finding.status == OK
    assert finding.found.startswith("8 cores, 2 threads per run: up to --jobs 4; OMP_NUM_THREADS is 3")
    monkeypatch.setattr(doctor_environment, "cores", lambda: 1)
    assert "--set threads=1" in only(doctor_environment.threads(doctor_request(tmp_path))).remedy


def test_a_tracking_server_that_answers_and_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}/x")
        finding = only(doctor_environment.tracking(doctor_request(tmp_path)))
        assert finding.status == OK and "secret" not in finding.found
    finding = only(doctor_environment.tracking(doctor_request(tmp_path)))
    assert finding.status == WARN and "Connection refused" in finding.found and "secret" not in finding.found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/mlflow.db")
    assert only(doctor_environment.tracking(doctor_request(tmp_path))).status == OK
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "is not set" in only(doctor_environment.tracking(doctor_request(tmp_path))).found


# --- plug-ins and data sets ---


def test_which_datasets_package_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor_plugins.datasets_name(doctor_request(tmp_path))).status == OK
    monkeypatch.setattr(doctor_plugins, "version", lambda _: "3.2.0")
    assert "Hugging Face's 3.2.0 is installed too" in only(doctor_plugins.datasets_name(doctor_request(tmp_path))).found
    other = ModuleType("datasets")
    other.__file__ = "/elsewhere/datasets/__init__.py"
    monkeypatch.setitem(sys.modules, "datasets", other)
    finding = only(doctor_plugins.datasets_name(doctor_request(tmp_path)))
    assert finding.status == PROBLEM and "/elsewhere/datasets" in finding.found


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare more plug-ins, as another package would."""
    original = doctor_plugins.entry_points

    def declare(group: str, **values: str) -> None:
        more = [EntryPoint(name=name, value=value, group=group) for name, value in values.items()]
        monkeypatch.setattr(
            doctor_plugins,
            "entry_points",
            lambda group: [*original(group=group), *(e for e in more if e.group == group)],
        )

    return declare


def test_every_plug_in_loads(tmp_path: Path) -> None:
    findings = list(doctor_plugins.plugins(doctor_request(tmp_path)))
    assert len(findings) == len(get_args(Kind)) and {finding.status for finding in findings} == {OK}


def test_plug_ins_that_do_not_load_or_share_a_name(tmp_path: Path, entries: Callable[..., None]) -> None:
    entries("bench.methods", broken="nowhere.at_all:Method", sbs="bench.method:Method")
    found = [finding for finding in doctor_plugins.plugins(doctor_request(tmp_path)) if finding.status == PROBLEM]
    duplicate, broken = found
    assert duplicate.found.startswith(
        "two methods are called 'sbs': bench.method:Method (unknown package) and methods.sbs"
    )
    assert (
        "method 'broken' of unknown package (nowhere.at_all:Method) does not load: ModuleNotFoundError" in broken.found
    )
    assert "pip uninstall" in broken.remedy


def test_plug_ins_that_were_added_after_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = doctor_plugins.entry_points
    monkeypatch.setattr(
        doctor_plugins,
        "entry_points",
        lambda group: [entry for entry in original(group=group) if entry.name != "sbs_q"],
    )
    (problem,) = (finding for finding in doctor_plugins.plugins(doctor_request(tmp_path)) if finding.status == PROBLEM)
    assert problem.found == "methods not installed: sbs_q" and "pip install -e ." in problem.remedy


def data(root: Path, data_dir: Path, name: str, **fields: Any) -> Finding:
    """The finding on one data set."""
    findings = {
        finding.check: finding
        for finding in doctor_plugins.data_sets(doctor_request(root, data_dir=data_dir, **fields))
    }
    return findings[f"data {name}"]


def test_data_sets_that_are_missing_incomplete_there_or_corrupt(tmp_path: Path) -> None:
    assert data(tmp_path, tmp_path, "digits").status == data(tmp_path, tmp_path, "synthetic").status == OK
    missing = data(tmp_path, tmp_path, "cifar100")
    assert missing.status == WARN
    assert missing.found == f"not found in {tmp_path / 'cifar-100-python'}"
    assert "put train, test, meta there, or give another folder with --data-dir DIR" in missing.remedy
    assert data(tmp_path, tmp_path, "cifar100", preset="cifar100-short").status == PROBLEM
    assert not list(tmp_path.iterdir())  # nothing is downloaded or made
    for name in ("train", "meta"):
        write_text(tmp_path / "cifar-100-python" / name, "x")
    incomplete = data(tmp_path, tmp_path, "cifar100")
    assert incomplete.status == PROBLEM and incomplete.found.startswith("test not found in")
    write_text(tmp_path / "cifar-100-python" / "test", "x")
    assert data(tmp_path, tmp_path, "cifar100").found == f"its 3 files are in {tmp_path / 'cifar-100-python'}"
    corrupt = data(tmp_path, tmp_path, "cifar100", thorough=True)
    assert corrupt.status == PROBLEM and "is corrupt: expected md5" in corrupt.found and "delete it" in corrupt.remedy


def test_another_packages_data_set_is_read_only_when_asked_for(tmp_path: Path, entries: Callable[..., None]) -> None:
    entries("bench.datasets", foreign="datasets.synthetic:Synthetic", lost="nowhere:Data")
    assert "read only with --thorough" in data(tmp_path, tmp_path, "foreign").found
    assert data(tmp_path, tmp_path, "foreign", thorough=True).found.startswith("intact: 512 training")
    assert data(tmp_path, tmp_path, "lost").status == PROBLEM


# --- whether the store can be worked in ---


@pytest.mark.parametrize("root", ["store", "not/there/yet"])
def test_a_store_that_can_be_worked_in_is_left_as_it_was(fake: FakeStore, tmp_path: Path, root: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    for name, check in doctor_store.CHECKS:
        finding = only(check(doctor_request(tmp_path / root)))
        assert finding.status == OK, (name, finding)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_cannot_be_written() -> None:
    seen = doctor_request(Path("/proc/store"))
    finding = only(doctor_store.writable(seen))
    assert finding.status == PROBLEM and "cannot write to '/proc'" in finding.found and "--store DIR" in finding.remedy
    statuses = [
        finding.status for name, check in doctor_store.CHECKS for finding in doctor._findings(name, check, seen)
    ]
    assert len(statuses) == len(doctor_store.CHECKS)


def test_locks_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def unlocked(leases: Leases) -> Any:
        leases.folder.mkdir(parents=True)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Leases, "lock", unlocked)
        finding = only(doctor_store.locks(doctor_request(tmp_path)))
    assert finding.status == PROBLEM and finding.found == "a second process gets a lock that is held"

    def unsupported(_: Leases) -> Any:
        raise BenchError("the lock 'x' cannot be had")

    monkeypatch.setattr(Leases, "lock", unsupported)
    assert only(doctor_store.locks(doctor_request(tmp_path))).status == PROBLEM


def test_a_file_system_that_cannot_synchronise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    finding = only(doctor_store.atomic_writes(doctor_request(tmp_path)))
    assert finding.status == PROBLEM and "Invalid argument" in finding.found


def test_a_clock_that_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_store.time, "time", lambda: 0.0)
    finding = only(doctor_store.clock(doctor_request(tmp_path)))
    assert finding.status == WARN and "from this machine's time" in finding.found


def test_a_disk_that_is_full(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_store, "free_bytes", lambda _: 5_000_000)
    finding = only(doctor_store.space(doctor_request(fake.root)))
    assert (finding.status, finding.found) == (PROBLEM, "5.0 MB free, about 1.0 GB needed")


def test_what_open_units_need_is_judged_by_finished_ones(fake: FakeStore) -> None:
    for seed in range(3):
        fake.missing(f"open-{seed}")
    fake.document()
    (fake.root / "runs" / "fixed-4bit-0" / "network.pt").write_bytes(b"x" * 1_000_000)
    assert 3 * 0.5e6 < doctor_store._still_needed(fake.store) < 3 * 0.6e6


def test_disk_use_tells_what_can_go(fake: FakeStore) -> None:
    archived = fake.root / "runs" / "fixed-4bit-0.stale-1"
    shutil.copytree(fake.root / "runs" / "fixed-4bit-0", archived)
    write_text(archived / "network.pt", "x" * 2000)
    kilobytes = sum(path.stat().st_size for path in archived.iterdir()) / 1e3
    finding = only(doctor_store.disk_use(doctor_request(fake.root)))
    assert "runs " in finding.found and finding.remedy.endswith(f"` would free {kilobytes:.1f} kB")


# --- whether what it holds is intact ---


def test_a_sound_store_is_intact(fake: FakeStore) -> None:
    for thorough in (False, True):
        for name, check in doctor_health.CHECKS:
            assert only(check(doctor_request(fake.root, thorough=thorough))).status == OK, name


def test_a_damaged_study(fake: FakeStore) -> None:
    path = fake.root / "studies" / "quick" / "study.json"
    path.write_text(path.read_text().replace("fixed-4bit-0", "fixed-4bit-9"))
    finding = only(doctor_health.studies(doctor_request(fake.root)))
    assert finding.status == PROBLEM and finding.found == "the study.json of 'quick' is damaged or missing"
    assert finding.remedy.startswith(f"run `bench run --store {fake.root}` again")
    path.write_text("{")
    assert "the study's command" in only(doctor_health.studies(doctor_request(fake.root))).remedy


def test_damaged_records_and_files(fake: FakeStore) -> None:
    (fake.root / "runs" / "fixed-4bit-0" / "record.json").write_text("{")
    (fake.root / "runs" / "fixed-4bit-1" / "policy.json").unlink()
    (fake.root / "tuning" / "tuning-sbs-4bit" / "trials" / "1" / "trial.json").write_text("{}")
    finding = only(doctor_health.records(doctor_request(fake.root)))
    assert finding.status == PROBLEM
    assert finding.found == (
        "3 damaged: trials/tuning-sbs-4bit-1 (trial.json is damaged), runs/fixed-4bit-0 (its record is damaged), "
        "runs/fixed-4bit-1 (policy.json is missing)"
    )


def test_a_large_file_is_hashed_when_asked_for(fake: FakeStore) -> None:
    record = fake.store.record("runs", "fixed-4bit-0")
    large = fake.root / "runs" / "fixed-4bit-0" / "network.pt"
    large.write_bytes(b"x" * (2 << 20))
    listed = {"network.pt": {"bytes": 2 << 20, "sha256": "0" * 64}}
    fake.store.write_record("runs", "fixed-4bit-0", record | {"files": listed})
    assert only(doctor_health.records(doctor_request(fake.root))).status == OK
    assert "network.pt is damaged" in only(doctor_health.records(doctor_request(fake.root, thorough=True))).found


def test_leases_of_the_dead_and_units_that_only_say_they_run(fake: FakeStore) -> None:
    fake.run("dnas", 0, status="running")
    fake.run("dnas", 1, status="running")
    for name, holder in (("runs-dnas-4bit-0", DEAD), ("runs-dnas-4bit-1", Holder.this().to_json())):
        document = {"name": name, "token": "t", "holder": holder, "beat": 1, "time": "", "title": "", "progress": {}}
        write_json(fake.root / "leases" / f"{name}.json", document)
    finding = only(doctor_health.leases(doctor_request(fake.root)))
    assert finding.status == WARN and finding.remedy.startswith("`bench clean --yes --store ")
    assert finding.found == "1 of processes that died, or unreadable: runs-dnas-4bit-0"
    finding = only(doctor_health.orphans(doctor_request(fake.root)))
    assert (finding.status, finding.found) == (
        WARN,
        "1 are marked as running, but no process runs them: runs/dnas-4bit-0",
    )
    write_text(fake.root / "leases" / "runs-x.json", "{")
    assert [finding.status for finding in doctor_health.leases(doctor_request(fake.root))] == [WARN, WARN]


def test_stale_results_by_method(fake: FakeStore) -> None:
    for seed in (0, 1):
        record = fake.store.record("runs", f"fixed-4bit-{seed}")
        changed = record["fingerprint"] | {"method_source": "syntax-1:another"}
        fake.store.write_record("runs", f"fixed-4bit-{seed}", record | {"fingerprint": changed})
    finding = only(doctor_health.stale(doctor_request(fake.root)))
    assert (finding.status, finding.found) == (WARN, "2 results of fixed: method source changed")
    assert finding.remedy == f"`bench run --store {fake.root}`; it makes them again"


def test_the_results_of_a_method_that_is_not_installed(fake: FakeStore) -> None:
    fake.run("gone", 0, 60.0)
    fake.document()
    assert "1 results of gone: unknown method 'gone'" in only(doctor_health.stale(doctor_request(fake.root))).found


def test_the_tracking_database(fake: FakeStore) -> None:
    path = fake.root / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table runs (name text)")
        connection.executemany("insert into runs values (?)", [("x" * 500,) for _ in range(100)])
    connection.close()
    assert only(doctor_health.tracking_database(doctor_request(fake.root))).found.startswith("intact")
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    finding = only(doctor_health.tracking_database(doctor_request(fake.root)))
    assert finding.status == PROBLEM and finding.remedy.startswith(f"`mv {path} {path}.damaged`")
    path.write_text("no database " * 100)
    assert only(doctor_health.tracking_database(doctor_request(fake.root))).status == PROBLEM


# --- all of it ---


def test_a_check_that_fails_says_so_and_the_others_go_on(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: DoctorRequest) -> Any:
        raise RuntimeError("it is\nbroken")

    def missing(_: DoctorRequest) -> Any:
        raise ModuleNotFoundError("No module named 'packaging'", name="packaging.version")

    checks = [("one", broken), ("two", missing), ("three", doctor_health.studies)]
    monkeypatch.setattr(doctor, "_checks", lambda: checks)
    one, two, three = examine(doctor_request(fake.root))
    assert (one.status, one.found) == (WARN, "cannot be checked: RuntimeError: it is")
    assert (two.status, two.remedy) == (PROBLEM, "pip install packaging")
    assert three.status == OK


def test_a_preset_or_study_that_is_unknown_is_bad_usage(fake: FakeStore) -> None:
    for fields, told in (
        ({"preset": "quik"}, "unknown preset 'quik'"),
        ({"study": "quik"}, "no study 'quik'"),
        ({"preset": "quick", "study": "quick"}, "exclude each other"),
    ):
        with pytest.raises(BenchError, match=told):
            list(examine(doctor_request(fake.root, **fields)))
    spec = doctor_request(fake.root, study="quick").spec
    assert spec is not None and spec.task.model == "resnet8"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The command with a faked probe of PyTorch."""
    monkeypatch.setattr(finding_module, "probe_torch", lambda: GOOD)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: object) -> tuple[int, str]:
        line = ["doctor", "--data-dir", str(tmp_path), *map(str, arguments)]
        answer = CliRunner().invoke(bench, line, standalone_mode=False, catch_exceptions=False)
        return int(answer.return_value), answer.output

    return run


def test_the_command_prints_a_line_a_check(
    fake: FakeStore, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    status, out = command("--store", tmp_path / "nowhere", "--long")
    *lines, last = out.splitlines()
    assert (status, last) == (0, "no problems")
    assert {line.split()[0] for line in lines} == {OK, WARN}
    (fake.root / "runs" / "fixed-4bit-0" / "record.json").write_text("{")
    status, out = command("--store", fake.root, "--study", "quick")
    assert status == 1 and out.endswith("\n1 problem\n")
    (line,) = (line for line in out.splitlines() if line.startswith(PROBLEM))
    assert line == (
        "PROBLEM  records: 1 damaged: runs/fixed-4bit-0 (its record is damaged) → run the study's command "
        "again; it repeats these units"
    )
    assert [line for line in out.splitlines() if line.startswith(OK)] == [out.splitlines()[-2]]
    assert " checks: python, torch, " in out
    status, out = command("--store", fake.root, "--json")
    findings = json.loads(out)
    assert status == 1
    assert all(set(finding) == {"check", "status", "found", "remedy"} for finding in findings)
    assert [finding["check"] for finding in findings if finding["status"] == PROBLEM] == ["records"]


def test_nothing_heavy_is_imported_before_a_check_needs_it() -> None:
    code = (
        "import sys, bench.cli.main\n"
        "from bench.diagnostics.doctor import doctor, environment, health, plugins, store\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas', 'mlflow', 'pydantic', 'filelock')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_some_names() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some("abcde") == "a, b, c and 2 more"


def test_data_sets_of_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = doctor_plugins._image_folders(doctor_request(tmp_path), "data imagefolder", ImageFolder)
    assert (folder.status, folder.found) == (OK, "its images are in the folder of --data-dir")
    seen = doctor_request(tmp_path, data_dir=tmp_path)
    absent = doctor_plugins._image_folders(seen, "data imagenet", ImageNet)
    assert absent.status == WARN and f"{tmp_path}/imagenet/train" in absent.found and "--data-dir DIR" in absent.remedy
    make_folder(tmp_path, train=2, test=1)
    there = doctor_plugins._image_folders(seen, "data imagefolder", ImageFolder)
    assert there.found == f"its images are in {tmp_path}/train and {tmp_path}/val"
    thorough = doctor_request(tmp_path, data_dir=tmp_path, thorough=True)
    read = doctor_plugins._image_folders(thorough, "data imagefolder", ImageFolder)
    assert read.found == "intact: 8 training and 4 test images"


def test_measured_times_are_listed_with_their_spread(tmp_path: Path) -> None:
    seen = doctor_request(tmp_path)
    assert "none" in only(doctor_store.measured_times(seen)).found
    folder = seen.store.root / "measured" / "0123"
    folder.mkdir(parents=True)
    write_table(folder / "onnxruntime.json", model_shape("resnet8", "digits"))
    finding = only(doctor_store.measured_times(seen))
    assert finding.status == OK
    assert "resnet8 on digits: 10 kinds of layers, measured with onnxruntime 1.0" in finding.found
    assert "quartiles are 30 % of the median apart" in finding.found
    (folder / "onnxruntime.json").write_text("{}")
    finding = only(doctor_store.measured_times(seen))
    assert (finding.status, finding.remedy.partition(";")[0]) == (WARN, f"remove {folder / 'onnxruntime.json'}")
