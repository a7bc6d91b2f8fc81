"""A study that takes some seconds, its commands, and the comparison of a store with that of an undisturbed study."""

import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.store.files import Store, load_state, read_checked, read_json
from bench.store.leases import Leases
from tests.faults import processes

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny"
_SIZES = {"pretrain": 2, "search": 2, "finetune": 2}
SETTINGS = (
    *("--name", NAME, "--methods", "sbs,dnas,fixed", "--model", "resnet8", "--dataset", "synthetic"),
    *("--budget", "4bit", "--seeds", "2", "--device", "cpu", "--set", "threads=1", "--set", "task.train_images=96"),
    *("--set", "tuning.match=hinge", "--set", "tuning.trials=2"),
    *(part for phase, count in _SIZES.items() for part in ("--set", f"{phase}.epochs={count}")),
    *(part for phase in _SIZES for part in ("--set", f"{phase}.batch_size=32")),
)
UNITS = 15
"""Number of pretrainings, tunings, trials and runs of the study."""

_TIMES = ("seconds", "seconds_mean", "_mb", "started", "finished", "created", "command")
"""Endings of the names of fields and columns that differ between two runs of the same study."""

WAIT = 240.0
"""Seconds after which a command counts as hanging."""


def environment(token: str, **more: str) -> dict[str, str]:
    """Return the environment of commands: this checkout's code, a checkpoint after each epoch, and a mark."""
    unwanted = ("BENCH_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")  # compiling again would take a second in each process
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "BENCH_CHECKPOINT_SECONDS": "0",
        processes.MARK: token,
        **more,
    }


def new_token() -> str:
    """Make a new mark for the processes of a command."""
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a command.

    Attributes:
        status: Exit status; the negative number of a signal if one ended it.
        output: Everything that it printed.
        seconds: Wall time.
    """

    status: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of the output."""
        return (self.output.strip().splitlines() or [""])[-1]

    @property
    def is_clear(self) -> bool:
        """Whether the output ends with a clear line for the user and has no traceback."""
        return "Traceback" not in self.output and self.last_line.startswith("bench: ")


class Command:
    """A `bench run` of the study as a process group of its own.

    Args:
        store: Store of the study.
        extra: Further arguments.
        prefix: Command that runs it, e.g. `unshare`.
        more: Further environment variables.
    """

    def __init__(self, store: Path, *extra: str, prefix: Sequence[str] = (), **more: str) -> None:
        self.token = new_token()
        self.log = store.parent / f"{store.name}.{self.token[:8]}.log"
        self._began = time.monotonic()
        line = [*prefix, sys.executable, "-m", "bench", "run", *SETTINGS, "--store", str(store), *extra]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line,
                cwd=store.parent,
                env=environment(self.token, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return self.process.poll() is None

    def wait(self, seconds: float = WAIT) -> Ended:
        """Wait for the command to end.

        Raises:
            TimeoutError: It hangs; all its processes are killed.
        """
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill_all()
            raise TimeoutError(f"still running after {seconds:.0f} s: {self.output()[-500:]}") from error
        return Ended(status=status, output=self.output(), seconds=time.monotonic() - self._began)

    def output(self) -> str:
        """Return what the command has printed so far."""
        return self.log.read_text(errors="replace")

    def family(self) -> list[processes.Process]:
        """Return all living processes of the command."""
        return processes.marked(self.token)

    def kill_all(self) -> None:
        """Kill every process of the command."""
        self.process.kill()
        self.process.wait()
        processes.kill_marked(self.token)

    def leftovers(self, seconds: float = 25.0) -> list[processes.Process]:
        """Return processes that are alive some time after the command itself ended, and kill them."""
        deadline = time.monotonic() + seconds
        while (living := self.family()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if living:
            processes.kill_marked(self.token)
        return living


class Warm:
    """Runs commands in forks of a process that has imported everything: a second instead of ten for each."""

    def __init__(self, folder: Path, **more: str) -> None:
        self._folder = folder
        self.token = new_token()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=folder,
            env=environment(self.token, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        if self._server.stdin is not None:
            self._server.stdin.close()
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()
        processes.kill_marked(self.token)

    def bench(self, *arguments: str, fault: Mapping[str, Any] | None = None, **more: str) -> Ended:
        """Run `bench` with some arguments and wait for its end.

        Args:
            arguments: Words after `bench`.
            fault: Fault that the command meets, as `points.install` takes it.
            more: Further environment variables.
        """
        began = time.monotonic()
        log = self._folder / f"warm.{uuid.uuid4().hex[:8]}.log"
        job = {"arguments": arguments, "output": str(log), "environment": more, "fault": fault}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the server of warm commands died")
        output = log.read_text(errors="replace")
        log.unlink()
        return Ended(status=int(json.loads(line)["status"]), output=output, seconds=time.monotonic() - began)

    def run(self, store: Path, *extra: str, **more: str) -> Ended:
        """Run the study in one process."""
        return self.bench("run", *SETTINGS, "--store", str(store), "--in-process", *extra, **more)


# --- what a store holds ------------------------------------------------------------------------------------------

Portrait = dict[str, Any]
"""Everything that must be equal, by its path in the store."""


def portrait(root: Path) -> Portrait:
    """Read everything in a store that two runs of the same study must agree on."""
    store = Store(root)
    document = read_checked(store.study(NAME) / "study.json") or {}
    found: Portrait = {"study": {key: document.get(key) for key in ("runs", "tunings", "pretrained", "spec")}}
    for folder in _unit_folders(root):
        where = str(folder.relative_to(root))
        found[f"{where}/record.json"] = _lasting(_outcome(read_checked(folder / "record.json")))
        for name in ("policy.json", "raw_policy.json", "search.json", "curves.json", "trial.json"):
            if (folder / name).exists():
                found[f"{where}/{name}"] = _lasting(read_json(folder / name))
        for path in folder.glob("*.pt"):
            found[f"{where}/{path.name}"] = _tensors(path)
    for name in ("runs.csv", "results.csv"):
        found[f"studies/{NAME}/{name}"] = _table(store.study(NAME) / name)
    return found


def _unit_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of all units, without stale ones."""
    for pattern in ("pretrained/*", "tuning/*", "tuning/*/trials/*", "runs/*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir() and ".stale-" not in str(folder.relative_to(root)):
                yield folder


def _outcome(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the results in a record, without the number of attempts and the hashes of files."""
    left_out = ("attempt", "files", "times", "versions", "hardware", "checksum")
    return {key: value for key, value in (record or {}).items() if key not in left_out}


def _lasting(value: Any) -> Any:
    """Return a document without times and memory."""
    if isinstance(value, Mapping):
        return {key: _lasting(inner) for key, inner in value.items() if not str(key).endswith(_TIMES)}
    if isinstance(value, list):
        return [_lasting(inner) for inner in value]
    return value


def _tensors(path: Path) -> dict[str, str]:
    """Hash the tensors in a file: hashes are equal if and only if `torch.equal` is true, except for -0.0."""
    try:
        state = load_state(path)
    except BenchError as error:
        return {"damaged": str(error)}
    return {
        name: f"{tuple(value.shape)} {hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}"
        for name, value in state.items()
    }


def _table(path: Path) -> list[dict[str, str]]:
    """Read a table without the columns of times, memory and dates."""
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError:
        return []
    return [{key: value for key, value in line.items() if not key.endswith(_TIMES)} for line in lines]


def tracked(root: Path) -> list[str]:
    """Return the identities of the runs in a store's MLflow database that were not deleted."""
    with closing(sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "select tags.value from tags join runs using (run_uuid) "
            "where tags.key = 'bench.id' and runs.lifecycle_stage = 'active' order by tags.value"
        )
        return [str(row[0]) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Results of an undisturbed study.

    Attributes:
        root: Store of the study.
        portrait: Everything that must be equal.
        tracked: Identities of the runs in MLflow.
    """

    root: Path
    portrait: Portrait
    tracked: list[str] = field(default_factory=list)

    @classmethod
    def from_store(cls, root: Path, expected: int = 0) -> "Reference":
        """Read the store of a finished study, which has some number of units."""
        content = portrait(root)
        units = sum(key.endswith("record.json") for key in content)
        if units != (expected or UNITS):
            raise AssertionError(f"the undisturbed study has {units} units, not {expected or UNITS}")
        return cls(root=root, portrait=content, tracked=tracked(root))

    def differences(self, root: Path, *, tracking: bool = True, left_out: Sequence[str] = ()) -> list[str]:
        """Describe how a store differs from that of an undisturbed study; empty when it is equal and no process runs.

        Args:
            root: Store to compare.
            tracking: Whether MLflow must be up to date as well.
            left_out: Beginnings of paths that are not compared.
        """
        try:
            content = portrait(root)
        except Exception as error:  # anything that cannot be read is a difference
            return [f"cannot be read: {type(error).__name__}: {error}"]
        keys = [key for key in sorted(content.keys() | self.portrait.keys()) if not key.startswith(tuple(left_out))]
        wrong = [_difference(key, self.portrait.get(key), content.get(key)) for key in keys]
        wrong = [text for text in wrong if text]
        store, leases = Store(root), Leases(root)
        for folder in _unit_folders(root):
            where = str(folder.relative_to(root))
            if where.startswith(tuple(left_out)):
                continue
            record = read_checked(folder / "record.json") or {}
            kind, identity = _address(where)
            damage = store.damage(kind, identity, record, thorough=True)  # type: ignore[arg-type]
            wrong += [f"{where}: {damage}"] if damage else []
            wrong += [f"{where} still has checkpoints"] if (folder / "checkpoints").exists() else []
        wrong += [f"lease {view.name} is alive" for view in leases.all() if not leases.is_dead(view)]
        if tracking and not wrong:
            try:
                found_runs = tracked(root)
            except sqlite3.Error as error:
                return [f"MLflow's database: {error}"]
            wrong += [] if found_runs == self.tracked else [f"MLflow has {len(found_runs)} runs: {found_runs}"]
        return wrong


def _address(where: str) -> tuple[str, str]:
    parts = where.split("/")
    return ("trials", f"{parts[1]}-{parts[3]}") if len(parts) == 4 else (parts[0], parts[1])


def _difference(key: str, expected: Any, actual: Any) -> str:
    if expected == actual:
        return ""
    if expected is None or actual is None:
        return f"{key} is {'missing' if actual is None else 'too many'}"
    if isinstance(expected, dict) and isinstance(actual, dict):
        fields = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        changes = [f"{name}: {expected.get(name)!r:.60} → {actual.get(name)!r:.60}" for name in fields[:3]]
        return f"{key} differs in {', '.join(changes)}"
    return f"{key} differs"


def leftover_temporaries(root: Path) -> list[Path]:
    """Return files that a process left when it was killed while writing."""
    return [path for path in root.rglob(".*.tmp") if not path.name.startswith(".clock.")]


def signal_name(number: int) -> str:
    """Return the name of a signal, e.g. "SIGKILL"."""
    return signal.Signals(number).name
