"""Runs on a Dask cluster: the same numbers as in one process, also when a worker is lost on the way."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from bench.errors import BenchError
from bench.execution.settings import RunSettings
from bench.planning.plan import make_plan
from bench.reporting.mlflow.tracker import Tracker
from bench.results.tables import StudyResults
from bench.store.files import Store, read_json
from bench.study import run_study

distributed = pytest.importorskip("distributed", reason="Dask is not installed (extra [dask])")
pytestmark = pytest.mark.slow

_TIMES = ["search_seconds", "finetune_seconds", "total_seconds", "peak_memory_mb", "started", "finished"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made:
        yield made


def figures(store: Store, document: dict[str, Any]) -> pd.DataFrame:
    return StudyResults(store, document).runs.drop(columns=_TIMES)


def worker_pids(cluster: Any) -> list[int]:
    return [nanny.process.pid for nanny in cluster.workers.values()]


def kill_worker_of_a_run(cluster: Any, root: Path, killed: list[int], ended: threading.Event) -> None:
    """Wait until a run is worked on, then kill the worker that supervises it."""
    while not ended.wait(0.05):
        for path in root.glob("leases/runs-*.json"):
            lease = read_json(path)
            parent = _parent(lease["holder"]["pid"]) if lease else None
            if parent in worker_pids(cluster):
                os.kill(parent, signal.SIGKILL)
                killed.append(parent)
                return


def _parent(pid: int) -> int | None:
    """The worker behind a run's process: the parent of the server that it was forked from."""
    try:
        server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_lost_worker_costs_its_run_a_retry_and_nothing_else(
    cluster: Any, tiny: SimpleNamespace, finished: Any, tmp_path: Path
) -> None:
    spec, killed, ended = tiny.spec(), [], threading.Event()
    how = RunSettings(store=Store(tmp_path), data_dir=None, jobs=2, backend="dask", scheduler=cluster.scheduler_address)
    saboteur = threading.Thread(target=kill_worker_of_a_run, args=(cluster, tmp_path, killed, ended))
    saboteur.start()
    watcher = tiny.Recorder()
    try:
        document = run_study(make_plan(spec), how, Tracker(None, tmp_path), watcher)
    finally:
        ended.set()
        saboteur.join()
    assert killed  # how far its run was, and so whether that was begun twice, is left to chance
    assert set(watcher.outcomes.values()) == {"done"}
    pd.testing.assert_frame_equal(figures(how.store, document), figures(finished.store, finished.document))
    assert not list(tmp_path.glob("leases/*.json"))


def test_a_cluster_that_does_not_answer_is_a_clear_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    how = RunSettings(store=Store(tmp_path), data_dir=None, backend="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(
        BenchError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'.*--scheduler tcp://HOST:8786"
    ):
        run_study(make_plan(tiny.spec()), how, Tracker(None, tmp_path), tiny.Recorder())
