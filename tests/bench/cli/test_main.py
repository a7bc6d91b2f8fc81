"""The command line, mostly in this process; a few real ones where a process is what is tested."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from bench.store import machine

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
        ("run --in-process --jobs 2", "--in-process runs one unit after the other; remove --jobs"),
        ("run --in-process --backend loky", "--in-process runs one unit after the other"),
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
            "'everything' is not one of 'methods', 'models', 'datasets', 'presets', 'reports', 'forms', 'keys'",
        ),
        ("ui --port ٥٠٠٠", "'٥٠٠٠' is not a whole number; write it in the digits 0 to 9"),
        ("run --jobs 1_0", "'1_0' is not a whole number"),
        ("run --jobs 1000000", "1000000 is not in the range 1<=x<=1024"),
        ("run --set threads=1000000 --dry-run", "'threads' is 1000000"),
        ("run --budget ٤bit --methods fixed --dry-run", "budget '٤bit' is not understood"),
        ("run --preset=", "'' is empty; give a value, or leave the option out"),
        ("report --out=", "the path is empty; give one, or leave the option out"),
        ("run --store=", "the path is empty"),
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


# --- what is asked for ---


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


# --- dry runs ---


# --- runs ---


def test_a_reader_that_leaves_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from bench.__main__ import main; main()"
    command = [sys.executable, "-c", code, "list", "presets"]
    with os.fdopen(writing, "w") as gone:
        ran = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# --- code of plug-ins that fails ---

NET = "from bench.models.resnet import resnet8\ndef make(in_channels, num_classes):\n    ACT\n"
NET += """
from torch import nn

class Late(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    def forward(self, images):
        return [][3]
"""
FAILING = {
    "an index": ("{}[3]", "KeyError: 3 ({file}:3)"),
    "a lazy import": ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' ({file}:3)"),
    "a missing argument": ("return resnet8()", "({file}:3)"),
    "an exit": ("raise SystemExit(0)", "SystemExit: 0 ({file}:3)"),
    "no end": ("return make(1, 2)", "RecursionError: maximum recursion depth exceeded"),
    "its forward pass": ("return Late()", "IndexError: list index out of range ({file}:11)"),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_a_model_raises_is_one_line_with_its_place_and_a_traceback_in_a_file(
    case: str, bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, told = FAILING[case]
    name = f"failing_{case.replace(' ', '_')}"
    (tmp_path / "here" / f"{name}.py").write_text(NET.replace("ACT", act))
    monkeypatch.setattr(sys, "path", [*sys.path])
    refusal = bench("cost", "--model", f"{name}:make", "--dataset", "digits", "--bits", "4").refusal
    assert told.format(file=f"{name}.py") in refusal
    assert "Traceback" in Path(refusal.rpartition("; the traceback is in ")[2]).read_text()


@pytest.mark.parametrize("act", ["raise SystemExit(0)", "[][1]", "import nowhere_at_all", "raise KeyError('x')"])
def test_so_is_what_its_module_raises(
    act: str, bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"failing_module_{abs(hash(act))}"
    (tmp_path / "here" / f"{name}.py").write_text(f"x = 1\n{act}\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    refusal = bench("cost", "--model", f"{name}:make", "--dataset", "digits", "--bits", "4").refusal
    assert refusal.startswith(f"cannot load model '{name}:make' from {name}:make: ")
    assert f"({name}.py:2); the traceback is in " in refusal


def test_a_model_that_ends_the_process_does_not_end_the_command_silently(tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text("import os\nos._exit(0)\n")
    command = [sys.executable, "-m", "bench", "cost", "--model", "ending:make", "--dataset", "digits", "--bits", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bench: {tmp_path}/ending.py:2 ended the command with os._exit(0)\n"


def test_a_value_without_end_is_cut_and_what_to_do_is_said(bench: Callable[..., Any]) -> None:
    refusal = bench("run", "--budget", "x" * 100_000).refusal
    assert len(refusal) < 5000
    assert "xxxx … " in refusal and refusal.endswith("'1.2ms@onnxruntime' (on this hardware)")
