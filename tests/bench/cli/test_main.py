"""The command line, mostly in this process; a few real ones where a process is what is tested."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest

from bench.cli.run import parse_seeds
from bench.diagnostics.verify import CheckLine
from bench.execution.stages import finetuning, pretraining
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.planning.plan import make_plan, phases
from bench.planning.units import title
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting.mlflow.tracker import Tracker
from bench.reporting.report import Figure
from bench.spec.sources import preset_names
from bench.store import files as store_module
from bench.store import machine
from bench.store.files import read_json


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's view is not what a test is about."""
    monkeypatch.setattr(Tracker, "prepare", lambda *_: True)
    monkeypatch.setattr(Tracker, "log_study", lambda *_, **__: True)


def toml(values: Mapping[str, Any]) -> str:
    """A specification as a file; JSON's values are TOML's."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)


@pytest.fixture
def spec_file(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(toml(tiny.values))
    return tmp_path / "tiny.toml"


# --- what is refused ---

SMALL = ("run", "--methods", "fixed", "--model", "resnet8", "--dataset", "synthetic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --methods sbs,dnass", "unknown method 'dnass': did you mean 'dnas'?"),
        ("run --dataset cifar10O", "unknown dataset 'cifar10O': did you mean 'cifar10'?"),
        ("run --model resnet21", "unknown model 'resnet21': did you mean 'resnet20'?"),
        ("run --preset quik", "unknown preset 'quik': did you mean 'quick'?"),
        ("run --methods sbs,,dnas", "--methods 'sbs,,dnas' has an empty entry; separate names by single commas"),
        ("run --methods sbs,sbs", "sbs is listed twice; each may appear once"),
        ("run --budget 4bit,", "--budget '4bit,' has an empty entry"),
        ("run --seeds a", "--seeds 'a' is not understood; give a count up to 10000, e.g. 5, or a list"),
        ("run --seeds 0", "--seeds '0' is not understood"),
        ("run --seeds -1", "--seeds '-1' is not understood"),
        ("run --seeds ,", "--seeds ',' is not understood"),
        ("run --seeds 1,1", "1 is listed twice"),
        ("run --seeds 0,-1", "'seeds.1' is -1, but must be at least 0"),
        ("run --seeds 0,1000000", "'seeds.1' is 1000000"),
        ("run --jobs 0", "'--jobs': 0 is not in the range"),
        ("run --device tpu", "'device' is 'tpu'"),
        ("run --backend ray", "unknown backend 'ray'"),
        ("run --backend dask", "--backend dask needs the address of a cluster, e.g. --scheduler tcp://HOST:8786"),
        ("run --scheduler tcp://here:1", "--scheduler tcp://here:1 has no effect with --backend threading"),
        ("run --in-process --jobs 2", "--in-process works on one unit after the other; leave --jobs"),
        ("run --in-process --backend loky", "--in-process works on one unit after the other"),
        ("run --timeout 5", "--timeout '5' is not understood; give a number above 0 with a unit, e.g. 90s, 30min"),
        ("run --timeout 0s", "--timeout '0s' is not understood"),
        ("run --timeout -3min", "--timeout '-3min' is not understood"),
        ("run --memory-limit 8", "--memory-limit '8' is not understood; give a number above 0 with a unit, e.g. 800MB"),
        ("run --memory-limit 8h", "--memory-limit '8h' is not understood"),
        ("run --retry timeuot", "unknown outcome 'timeuot': did you mean 'timeout'?"),
        ("run --retry killed", "unknown outcome 'killed'"),
        ("run --runs-per-card 0", "'--runs-per-card': 0 is not in the range"),
        ("run --name a/b", "'name' is 'a/b'"),
        ("run --spec missing.toml", "cannot read the specification 'missing.toml': No such file"),
        ("run --preset quick --spec missing.toml", "--preset quick and --spec missing.toml exclude each other"),
        ("run --set search.epochs", "--set 'search.epochs' is not of the form key=value"),
        ("run --set search.epoch=3", "unknown specification key 'epoch': did you mean 'epochs'?"),
        ("run --set search.epochs=x", "'search.epochs' is 'x', but must be a whole number"),
        ("run --set options.sbs.group_sise=4", "'group_sise': did you mean 'group_size'?"),
        ("run --set options.haq.bits=4", "options are given for 'haq', which is not among the methods"),
        ("run --methods fixed --set options.fixed.bits=99", "'options.fixed.bits' is 99"),
        ("run --set task.checkpoint=missing.pt", "cannot read the checkpoint 'missing.pt': No such file"),
        ("report", "no study in the store 'bench-store'; run one first: `bench run`"),
        ("status tiny", "no study in the store 'bench-store'"),
        ("ui", "no study in the store 'bench-store'"),
        ("ui --port 0", "0 is not in the range"),
        (
            "list everything",
            "'everything' is not one of 'methods', 'models', 'datasets', 'presets', 'reports', 'forms'",
        ),
        ("rum", "No such command 'rum'"),
        ("run --methodes sbs", "No such option '--methodes'"),
        ("run --seeds", "Option '--seeds' requires an argument"),
    ],
)
def test_bad_usage_is_one_clear_line(bench: Callable[..., Any], arguments: str, message: str) -> None:
    assert message in bench(*arguments.split()).refusal
    assert list(Path.cwd().iterdir()) == []  # nothing was begun


@pytest.mark.parametrize("budget", ["4bits", "0M", "99x", "21ms", "-4bit", "0bit", "33bit", "lots"])
def test_a_budget_that_is_none_is_named_with_what_is_allowed(bench: Callable[..., Any], budget: str) -> None:
    message = bench(*SMALL, f"--budget={budget}").refusal
    assert f"budget '{budget}'" in message
    assert any(word in message for word in ("allowed: '4bit'", "it must be above 0", "bits go from 1 to 32"))


def test_a_device_that_is_not_there(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    message = bench(*SMALL, "--device", "cuda").refusal
    assert "device 'cuda' does not exist: this machine has no CUDA device; use --device cpu" in message


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b'name = "a"\nname = "b"'])
def test_a_specification_that_is_no_toml(bench: Callable[..., Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    assert "bad.toml' is not valid TOML" in bench("run", "--spec", tmp_path / "bad.toml").refusal


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_store_that_cannot_be_written_to(bench: Callable[..., Any], tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in bench(*SMALL, "--store", tmp_path / where).refusal


def test_data_that_are_missing(bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops=3: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    message = bench(*SMALL[:-1], "cifar10", "--data-dir", tmp_path / "data").refusal
    assert str(tmp_path / "data") in message and "--data-dir" in message


def test_studies_reports_and_forms_that_do_not_exist(bench: Callable[..., Any], finished: Any) -> None:
    store = ("--store", finished.store.root)
    for command in ("status", "report", "ui"):
        assert "no study 'tinny' in the store" in bench(command, "tinny", *store).refusal
    assert (
        "unknown report 'comparisons': did you mean 'comparison'?"
        in bench("report", "--report", "comparisons", *store).refusal
    )
    assert "unknown form 'markdwn': did you mean 'markdown'?" in bench("report", "--format", "markdwn", *store).refusal


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("7,", [7]), ("0,1,5", [0, 1, 5]), (" 4 , 2 ", [4, 2]), ("0,", [0])]
)
def test_seeds_are_a_count_or_a_list(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


# --- what is asked for ---


def asked(monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any], *arguments: object) -> Any:
    """The specification that a command line stands for."""
    found = []
    monkeypatch.setattr("bench.cli.run._run", lambda console, plan, *_: found.append(plan.spec) or 0)
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
    assert spec.options.keys() == {"sbs"}
    assert spec.options["sbs"]["threshold_lr"] == "paper"


# --- what is shown ---


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(bench: Callable[..., Any], arguments: list[str]) -> None:
    answer = bench(*arguments)
    assert answer.status == 0 and answer.err == ""
    for command in ("run", "status", "report", "ui", "list", "cost", "verify"):
        assert f"\n  {command} " in answer.out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bench.__main__ import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['report', '--help']):\n"
        "    sys.argv = ['bench', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ran.stderr
    assert "'click'" in loaded
    heavy = ("torch", "mlflow", "pandas", "optuna", "numpy", "altair", "sklearn", "methods", "datasets", "reports")
    assert [name for name in heavy if f"'{name}'" in loaded] == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("methods", ["sbs", "dnas", "fixed", "full_precision", "cost_only", "multi_path"]),
        ("models", ["resnet8", "resnet20", "resnet56"]),
        ("datasets", ["digits", "cifar10", "cifar100", "synthetic"]),
        ("presets", preset_names()),
        ("reports", ["comparison", "ablation", "published"]),
        ("forms", ["terminal", "markdown", "latex", "csv"]),
    ],
)
def test_lists_have_a_line_on_each(bench: Callable[..., Any], kind: str, expected: list[str]) -> None:
    answer = bench("list", kind)
    assert (answer.status, answer.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert set(expected) <= lines.keys()
    assert all(len(summary) > 10 for summary in lines.values())


def test_status_shows_every_run(bench: Callable[..., Any], copied: Path, finished: Any) -> None:
    document = read_json(copied / "studies" / "tiny" / "study.json")
    missing, damaged = document["runs"][0], document["runs"][1]
    (copied / "runs" / missing / "record.json").unlink()
    (copied / "runs" / damaged / "record.json").write_text("{")
    answer = bench("status", "--store", copied)
    assert (answer.status, answer.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines() if "│" in line]
    rows = [row for row in rows if row[0]]  # a long reason goes on in the next line
    plan = finished.plan
    assert [row[0] for row in rows] == [title(unit) for unit in (*plan.pretrainings, *plan.tunings, *plan.runs)]
    assert [row[1] for row in rows] == ["done"] * 5 + ["planned", "damaged"] + ["done"] * 6
    assert "NA" not in answer.out and "nan" not in answer.out
    record = finished.record("fixed 0")
    assert ["run fixed 4bit seed 0", "done", "1", f"{record['metrics']['top1']:.2f}", "55.4", ""] in rows
    assert "11 done, 1 planned, 1 damaged" in answer.out


@pytest.mark.parametrize(
    ("form", "sign"),
    [("terminal", "Top-1 %"), ("markdown", "| sbs "), ("csv", "sbs,4bit,"), ("latex", r"\begin{tabular}")],
)
def test_reports_come_in_several_forms(bench: Callable[..., Any], finished: Any, form: str, sign: str) -> None:
    answer = bench("report", "tiny", "--format", form, "--store", finished.store.root)
    assert (answer.status, answer.err) == (0, "")
    assert sign in answer.out
    for method in ("sbs", "dnas", "fixed"):
        assert method in answer.out
    if form == "csv":
        rows = list(csv.reader(io.StringIO(answer.out)))
        assert {len(row) for row in rows[:5]} == {len(rows[0])}


def test_the_environment_names_the_store(
    bench: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_STORE", str(finished.store.root))
    assert "tiny: resnet8 on synthetic" in bench("report").out


def test_verify_fails_when_a_check_does(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[CheckLine] = []
    monkeypatch.setattr("bench.plugins.entry_points.available", lambda kind: {"one": None})
    monkeypatch.setattr("bench.plugins.registry.load", lambda kind, name: lambda: lines)
    lines.append(CheckLine(what="the theorem", figure="0.5", passed=True))
    answer = bench("verify")
    assert (answer.status, answer.out) == (0, "pass  the theorem: 0.5\nall checks passed\n")
    lines.append(CheckLine(what="a misprint", figure="2", passed=True, deviation=True))
    answer = bench("verify")
    assert answer.status == 0 and "\nnote  a misprint: 2\nall checks passed\n1 printed figures do not" in answer.out
    lines[:] = [CheckLine(what="the theorem", figure="0.5", passed=False)]
    answer = bench("verify")
    assert (answer.status, answer.out) == (1, "FAIL  the theorem: 0.5\n1 checks failed\n")


def test_verify_writes_lines_and_figures(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import altair as alt

    def check() -> Iterator[CheckLine | Figure]:
        yield CheckLine(what="the theorem | holds", figure="0.5", passed=True)
        chart = alt.Chart(alt.Data(values=[{"x": 1, "y": 2}])).mark_point().encode(x="x:Q", y="y:Q")
        yield Figure(name="fig9", title="A figure", draw=lambda: chart)
        yield CheckLine(what="the bound", figure="0.7", passed=False)

    known = entry_points.available
    monkeypatch.setattr(entry_points, "available", lambda kind: {"one": None} if kind == "checks" else known(kind))
    monkeypatch.setattr(plugins, "load", lambda kind, name: check)
    answer = bench("verify", "--out", tmp_path / "out")
    assert answer.status == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"fig9.svg", "fig9.pdf", "fig9.png", "verify.md", "verify.csv", "verify.tex"}
    assert f"{len(names)} files in {tmp_path / 'out'}\n1 checks failed\n" in answer.out
    with (tmp_path / "out" / "verify.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    assert rows == [["Claim", "Found", "Holds"], ["the theorem | holds", "0.5", "yes"], ["the bound", "0.7", "no"]]
    assert (tmp_path / "out" / "fig9.svg").read_text().startswith("<svg")


# --- dry runs ---


def test_a_dry_run_lists_every_unit_and_leaves_no_store(
    bench: Callable[..., Any], spec_file: Path, tiny: SimpleNamespace
) -> None:
    changes = {"methods": ["sbs", "fixed"], "budgets": ["4bit", "3bit"], "seeds": [0]}
    answer = bench(
        "run", "--spec", spec_file, "--methods", "sbs,fixed", "--budget", "4bit,3bit", "--seeds", 1, "--dry-run"
    )
    assert (answer.status, answer.err) == (0, "")
    plan = make_plan(tiny.spec(changes))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines() if "│" in line]
    assert [row[3] for row in rows] == [unit.identity for _, units in phases(plan) for unit in units]
    assert {row[1] for row in rows} == {"planned"}
    assert "measured steps of resnet8: training" in answer.out and "up to 2 trials a tuning" in answer.out
    assert list(Path.cwd().iterdir()) == []


def test_a_dry_run_knows_what_is_done_and_writes_nothing(
    bench: Callable[..., Any], spec_file: Path, copied: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    answer = bench("run", "--spec", spec_file, "--methods", "fixed", "--seeds", "0,2", "--store", copied, "--dry-run")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines() if "│" in line]
    states = {row[0]: row[1:3] for row in rows}
    assert states["run fixed 4bit seed 0"] == ["done", "0 s"]
    assert states["run fixed 4bit seed 2"][0] == states["pretrain seed 2"][0] == "planned"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


# --- runs ---


@pytest.mark.slow
def test_a_finished_study_again_prints_the_table_and_fills_mlflow(
    bench: Callable[..., Any], spec_file: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pretraining, finetuning):
        monkeypatch.setattr(module, "fit", None)  # nothing is trained
    answer = bench("run", "--spec", spec_file, "--store", copied)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.count(": done\n") == 2 + 8  # pretrained networks are not needed
    assert bench("report", "--store", copied).out.strip() in answer.out
    assert f"tables and runs.csv: {copied / 'studies' / 'tiny'}" in answer.out
    tracker = Tracker(None, copied)
    experiment = tracker.find_experiment("tiny")
    assert experiment is not None
    names = {run.info.run_name for run in tracker._client.search_runs([experiment])}
    assert {"sbs 4bit", "sbs 4bit seed 1", "dnas 4bit trial 1", "full_precision"} <= names


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
    assert "run broken 4bit seed 0: failed: ValueError: no [/luck]" in answer.out
    assert "run fixed 4bit seed 0: done" in answer.out
    assert bench("status", "--store", copied).out.count("no [/luck]") == 2


@pytest.mark.usefixtures("no_mlflow")
def test_a_budget_out_of_reach_is_no_failure(bench: Callable[..., Any], spec_file: Path, copied: Path) -> None:
    answer = bench("run", "--spec", spec_file, "--methods", "fixed", "--budget", "0.002x", "--store", copied)
    assert answer.status == 0
    for seed in (0, 1):
        assert f"  run fixed 0.002x seed {seed}: unreachable: even uniform 1 bit costs" in answer.out


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
        "bench: interrupted; nothing that had finished is lost, the same command continues from here"
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
    assert "run fixed 4bit seed 0: done" in again.stdout
    assert "Traceback" not in again.stderr
    (run,) = [read_json(path) for path in store.glob("runs/*/record.json")]
    assert run["status"] == "done"


def test_a_reader_that_leaves_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from bench.__main__ import main; main()"
    command = [sys.executable, "-c", code, "list", "presets"]
    with os.fdopen(writing, "w") as gone:
        ran = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_presets_say_how_long_they_take_with_each_schedule(bench: Callable[..., Any]) -> None:
    answer = bench("list", "presets", "--long")
    rows = {
        cells[0]: cells[1:] for line in answer.out.splitlines() if (cells := [c.strip() for c in line.split("│")[1:-1]])
    }
    assert rows.keys() == set(preset_names())
    assert all(time.split()[1] in ("s", "min", "h", "d") for times in rows.values() for time in times[1:])


def test_long_is_for_methods_and_presets_alone(bench: Callable[..., Any]) -> None:
    message = "--long describes methods and presets only; it has no effect on models"
    assert message in bench("list", "models", "--long").refusal


def test_methods_tell_all_of_themselves(bench: Callable[..., Any]) -> None:
    answer = bench("list", "methods", "--long")
    assert (answer.status, answer.err) == (0, "")
    message = {block.splitlines()[0]: block for block in answer.out.split("\n\n")}
    assert message.keys() == available("methods").keys()
    for name, block in message.items():
        method = load("methods", name)
        words = " ".join(block.split())
        for text in (method.summary, method.source, *method.deviations, *method.Options.model_fields):
            assert text and " ".join(text.split()) in words, (name, text)
    assert "can: a strength is tuned onto the budget, removes filters, chooses widths layer by layer" in " ".join(
        message["sbs"].split()
    )
    assert "bits = [2, 4, 8]" in message["sbs"] and "bits (absent)" in message["fixed"]


def test_a_list_can_be_of_some(bench: Callable[..., Any]) -> None:
    assert bench("list", "methods", "fixed").out.startswith("fixed  Uniform precision")
    assert bench("list", "models", "resnet8", "resnet20").out.count("\n") == 2
    Path("mine.py").write_text("from methods.fixed import Fixed\n\n\nclass Mine(Fixed):\n    summary = 'My own'\n")
    message = bench("list", "methods", "--long", "mine.py:Mine").out
    assert message.startswith("mine\n    My own\n    source:") and "can:" in message
    assert "unknown method 'fixd': did you mean 'fixed'?" in bench("list", "methods", "fixd").refusal
    assert "unknown model 'resnet9'" in bench("list", "models", "resnet9").refusal
    assert "unknown preset 'quik': did you mean 'quick'?" in bench("list", "presets", "quik").refusal
