"""`bench run`: its specification, dry runs, failures and interruptions."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.cli.run import _plan_table, parse_seeds
from bench.errors import BenchError
from bench.execution.stages import finetuning, pretraining
from bench.interface.specification import read_specification
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.planning.plan import make_plan, phases
from bench.reporting.mlflow.tracker import Tracker
from bench.results.status import UnitState
from bench.store import files as store_module
from bench.store.files import read_json
from tests.bench.cli.printed import table_rows
from tests.bench.cli.specification import toml


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("7,", [7]), ("0,1,5", [0, 1, 5]), (" 4 , 2 ", [4, 2]), ("0,", [0])]
)
def test_seeds_are_a_count_or_a_list(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["0,1,,2", "1_0", "1_0,", "٣", "٣,", ",", "", "0,,", ",0", "1.5", "-1", "0", "9" * 5000, "1,²"]
)
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is not understood; give a count up to"):
        parse_seeds(text)


def asked(monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any], *arguments: object) -> Any:
    """The specification that a command line stands for."""
    found = []
    monkeypatch.setattr("bench.cli.run._run", lambda plan, *_: found.append(plan.spec) or 0)
    assert bench("run", *arguments).status == 0
    return found[0]


def test_flags_beat_settings_beat_the_file(
    bench: Callable[..., Any], spec_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(
        monkeypatch, bench, "--spec", spec_file, "--set", "search.epochs=7", "--set", "tuning.trials=5",
        "--set", "seeds=[8]", "--set", "search.epochs=9", "--seeds", "4,2", "--budget", "3bit,0.1x",
    )  # fmt: skip
    assert (spec.name, spec.task.model, spec.threads) == ("tiny", "resnet8", 1)
    assert (spec.search.epochs, spec.search.batch_size, spec.tuning.trials) == (9, 32, 5)
    assert (spec.seeds, spec.budgets) == ((4, 2), ("3bit", "0.1x"))


def test_without_a_preset_the_quick_one_is_meant(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = asked(monkeypatch, bench, "--device", "cpu")
    assert (spec.name, spec.task.dataset, spec.device) == ("quick", "digits", "cpu")


def test_a_presets_options_for_methods_that_were_not_asked_for_are_left_out(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(monkeypatch, bench, "--preset", "cifar100-paper", "--methods", "fixed,sbs")
    assert spec.options.keys() == {"fixed", "sbs"}
    assert spec.options["sbs"]["threshold_lr"] == "paper"


def test_a_dry_run_lists_every_unit_and_leaves_no_store(
    bench: Callable[..., Any], spec_file: Path, tiny: SimpleNamespace
) -> None:
    changes = {"methods": ["sbs", "fixed"], "budgets": ["4bit", "3bit"], "seeds": [0]}
    answer = bench(
        "run", "--spec", spec_file, "--methods", "sbs,fixed", "--budget", "4bit,3bit", "--seeds", 1, "--dry-run"
    )
    assert (answer.status, answer.err) == (0, "")
    plan = make_plan(tiny.spec(changes))
    rows = table_rows(answer.out)
    assert [row[3] for row in rows] == [unit.identity for _, units in phases(plan) for unit in units]
    assert {row[1] for row in rows} == {"planned"}
    assert answer.out.startswith("measuring a few steps of each kind of work …\nmeasured on resnet8: ")
    assert "ms a step of sbs" in answer.out and "up to 2 trials a tuning" in answer.out
    assert list(Path.cwd().iterdir()) == []


def test_a_large_plan_has_one_row_for_all_seeds(tiny: SimpleNamespace) -> None:
    plan = make_plan(tiny.spec({"methods": ["fixed"], "seeds": list(range(150))}))
    units = [unit for _, units in phases(plan) for unit in units]
    states = {
        unit.identity: UnitState(kind="runs", identity=unit.identity, title="", state="planned" if number else "done")
        for number, unit in enumerate(units)
    }
    printed = io.StringIO()
    Console(file=printed, width=80).print(_plan_table("plan", [(unit, 2.0) for unit in units], states))
    assert table_rows(printed.getvalue()) == [
        ["pretrain", "done", "1", "2 s"],
        ["pretrain", "planned", "149", "5 min"],
        ["run fixed 4bit", "planned", "150", "5 min"],
    ]


def test_a_dry_run_tells_which_methods_cannot_use_a_budget_up(bench: Callable[..., Any], spec_file: Path) -> None:
    small = ("run", "--spec", spec_file, "--methods", "sbs,fixed", "--seeds", 1, "--dry-run")
    said = " ".join(bench(*small, "--budget", "4bit,10bit").out.split())
    assert "budget 10bit on resnet8" in said and "is above the costliest network of sbs (" in said
    assert "budget 4bit" not in said


def test_a_dry_run_knows_what_is_done_and_writes_nothing(
    bench: Callable[..., Any], spec_file: Path, copied: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    answer = bench("run", "--spec", spec_file, "--methods", "fixed", "--seeds", "0,2", "--store", copied, "--dry-run")
    rows = table_rows(answer.out)
    states = {row[0]: row[1:3] for row in rows}
    assert states["run fixed 4bit seed 0"] == ["done", "0 s"]
    assert states["run fixed 4bit seed 2"][0] == states["pretrain seed 2"][0] == "planned"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.slow
def test_a_finished_study_again_prints_the_table_and_fills_mlflow(
    bench: Callable[..., Any], spec_file: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pretraining, finetuning):
        monkeypatch.setattr(module, "fit", None)  # nothing is trained
    answer = bench("run", "--spec", spec_file, "--store", copied)
    assert (answer.status, answer.err) == (0, "")
    assert "10 of 10 units have their result already" in answer.out  # pretrained networks are not needed
    assert bench("report", "--store", copied).out.strip() in answer.out
    assert f"tables and runs.csv: {copied / 'studies' / 'tiny'}" in answer.out
    page = f"bench report tiny --out tiny-report --open --store {copied}"
    assert f"as a page, opened in a browser: {page}" in answer.out
    tracker = Tracker(None, copied)
    experiment = tracker.find_experiment("tiny")
    assert experiment is not None
    names = {run.info.run_name for run in tracker._client.search_runs([experiment])}
    assert {"sbs 4bit", "sbs 4bit seed 1", "dnas 4bit trial 2", "full_precision"} <= names


class Broken(Method):
    """Fails."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    error: Exception = ValueError("no [/luck]")

    def search(self, job: SearchJob) -> SearchResult:
        raise self.error


@pytest.mark.usefixtures("no_mlflow")
def test_a_failed_run_is_told_and_gives_exit_status_1(
    bench: Callable[..., Any], spec_file: Path, copied: Path, plugin: Callable[..., None]
) -> None:
    plugin("methods", "broken", Broken)
    answer = bench("run", "--spec", spec_file, "--methods", "broken,fixed", "--store", copied, "--in-process")
    assert answer.status == 1
    assert "run broken 4bit seed 0  failed: ValueError: no [/luck]" in answer.out
    assert bench("status", "--store", copied).out.count("no [/luck]") == 2


@pytest.mark.usefixtures("no_mlflow")
def test_a_budget_out_of_reach_is_no_failure(bench: Callable[..., Any], spec_file: Path, copied: Path) -> None:
    answer = bench("run", "--spec", spec_file, "--methods", "fixed", "--budget", "0.002x", "--store", copied)
    assert answer.status == 0
    for seed in (0, 1):
        assert f"  run fixed 0.002x seed {seed}  unreachable: even uniform 1 bit costs" in answer.out


@pytest.mark.usefixtures("no_mlflow")
def test_a_full_disk_is_one_line(
    bench: Callable[..., Any], spec_file: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes, **how: bool) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(store_module, "write_bytes", full)
    answer = bench("run", "--spec", spec_file, "--methods", "fixed", "--store", copied)
    assert answer.status == 2
    (line,) = answer.err.splitlines()
    assert line.startswith("bench: No space left on device: ") and str(copied) in line
    assert "nothing that had finished is lost" in line


@pytest.mark.usefixtures("no_mlflow")
def test_an_interruption_says_how_to_go_on(
    bench: Callable[..., Any],
    spec_file: Path,
    copied: Path,
    plugin: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin("methods", "broken", Broken)
    monkeypatch.setattr(Broken, "error", KeyboardInterrupt())
    answer = bench("run", "--spec", spec_file, "--methods", "broken", "--store", copied, "--in-process")
    assert answer.status == 130
    assert answer.err.strip() == (
        "bench: interrupted; nothing that had finished is lost; run the same command again to continue"
    )


@pytest.mark.slow
def test_ctrl_c_in_a_real_process_and_the_same_command_again(tmp_path: Path, tiny: SimpleNamespace) -> None:
    (tmp_path / "tiny.toml").write_text(toml({**tiny.values, "pretrain": {**tiny.values["pretrain"], "epochs": 20}}))
    store = tmp_path / "store"
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever the tests were started with
        "sys.modules['mlflow'] = None\n"  # its import takes as long as all else, and a study does without
        "from bench.__main__ import main\nmain()"
    )
    command = [sys.executable, "-c", code, "run", "--spec", str(tmp_path / "tiny.toml")]
    command += ["--methods", "fixed", "--seeds", "1", "--store", str(store)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BENCH", "MLFLOW"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        limit = time.monotonic() + 120
        while process.poll() is None and not list(store.glob("pretrained/*/record.json")):
            assert time.monotonic() < limit
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("bench: interrupted; ") and "Traceback" not in errors
    (record,) = [read_json(path) for path in store.glob("pretrained/*/record.json")]
    assert record["status"] == "interrupted"

    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert re.search(r"run fixed 4bit seed 0  \d+\.\d\d %, \d+\.\d % of the budget, \d+ s\n", again.stdout)
    assert "Traceback" not in again.stderr
    (run,) = [read_json(path) for path in store.glob("runs/*/record.json")]
    assert run["status"] == "done"


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{"])
def test_a_json_file_without_a_specification_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "record.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(
        BenchError, match=r"record.json' holds no specification; give a TOML file, a study's study.json"
    ):
        read_specification(file)
