"""Input that is wrong, contradictory or hostile: one clear line on stderr, exit status 2, nothing begun or lost."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from bench.cli.main import bench as command_line
from bench.store.files import write_checked

SMALL = ("run", "--methods", "fixed", "--model", "resnet8", "--dataset", "synthetic", "--seeds", "1")

Command = Callable[..., Any]


def nothing_was_begun(but: tuple[str, ...] = ()) -> bool:
    return sorted(path.name for path in Path.cwd().iterdir()) == sorted(but)


OPTIONS = [
    (name, option)
    for name, command in command_line.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag and option.nargs == 1
]


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("value", ["", " "])
def test_no_option_takes_nothing_for_a_value(command: str, option: click.Option, value: str) -> None:
    if value and isinstance(option.type, click.Path):
        pytest.skip("a name of a file may be a blank")
    ended = CliRunner().invoke(command_line, [command, f"{option.opts[0]}={value}"])
    assert ended.exit_code == 2 and "Traceback" not in ended.output
    assert f"'{option.opts[0]}'" in ended.output


@pytest.mark.parametrize("points", ["1_0", "٣", "1e3", "0x1", "nan", "inf", ""])
def test_a_difference_is_written_in_plain_digits(points: str) -> None:
    ended = CliRunner().invoke(command_line, ["plan", f"--detect={points}"])
    assert ended.exit_code == 2 and "is not a number; write it in the digits 0 to 9, e.g. 0.3" in ended.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--backend ray", "unknown backend 'ray': known: dask, loky, threading"),
        ("--backend dask", "--backend dask needs the address of a cluster, e.g. --scheduler tcp://HOST:8786"),
        ("--scheduler tcp://h:1", "--scheduler tcp://h:1 has no effect with --backend threading; add --backend dask"),
        ("--timeout 5", "--timeout '5' is not understood; give a number above 0 with a unit, e.g. 90s"),
        ("--timeout=-3s", "--timeout '-3s' is not understood"),
        ("--timeout 0min", "--timeout '0min' is not understood"),
        ("--timeout soon", "--timeout 'soon' is not understood"),
        ("--memory-limit 8", "--memory-limit '8' is not understood; give a number above 0 with a unit, e.g. 800MB"),
        ("--memory-limit 8TiB", "--memory-limit '8TiB' is not understood"),
        ("--memory-limit 1MB", "--memory-limit '1MB' is less than PyTorch itself needs; give at least 700MB"),
        ("--retry oomm", "unknown outcome 'oomm': did you mean 'oom'? known: all, diverged, failed, oom, timeout"),
        ("--retry done", "unknown outcome 'done'"),
        ("--retry failed,", "unknown outcome ''"),
        ("--in-process --jobs 2", "--in-process runs one unit after the other; remove --jobs and --backend"),
        ("--in-process --timeout 5s", "--timeout and --memory-limit have no effect with --in-process"),
        ("--in-process --memory-limit 8GB", "--timeout and --memory-limit have no effect with --in-process"),
        ("--runs-per-card 0", "'--runs-per-card': 0 is not in the range"),
        ("--runs-per-card 2 --device cpu", "--runs-per-card 2 has no effect on cpu; add --device cuda"),
        ("--optuna-storage nonsense", "--optuna-storage 'nonsense' is not the URL of a database"),
        ("--optuna-storage oracel://x/y", "--optuna-storage 'oracel://x/y' is not the URL of a database"),
        ("--tracking-uri ftp://x", "'ftp://x' is not a tracking URI"),
        ("--tracking-uri nonsense", "'nonsense' is not a tracking URI"),
        ("--devices 0", "'--devices': 0 is not in the range"),
        ("--name ../x", "'name' is '../x'"),
        ("--set =3", "--set '=3' is not of the form key=value"),
        ("--set a..b=3", "unknown specification key"),
        ("--set search=3", "'search' is 3"),
        ("--set threads=0", "'threads' is 0"),
        ("--set tuning.tolerance=2", "'tuning.tolerance' is 2"),
        ("--set tuning.match=both", "'tuning.match' is 'both'"),
        ("--set finetune.lr=-1", "'finetune.lr' is -1"),
        ("--set finetune.lr=nan", "'finetune.lr'"),
        ("--set finetune.lr=inf", "'finetune.lr'"),
        ("--set finetune.momentum=1", "'finetune.momentum' is 1"),
        ("--set search.batch_size=0", "'search.batch_size' is 0"),
        ("--set pretrain.decay=step", "decay = 'step' needs milestones"),
        ("--set pretrain.milestones=[3]", "milestones have no effect with decay = 'one_cycle'"),
        ("--set task.train_images=100000", "task.train_images is 100000; the training part has"),
        ("--methods=", "'--methods': '' is empty; give a value, or leave the option out"),
        ("--methods sbs,,fixed", "--methods 'sbs,,fixed' has an empty entry"),
        ("--budget=", "'--budget': '' is empty"),
        ("--budget ٤bit", "is not understood"),
        ("--budget 1_0M", "budget '1_0M' is not understood"),
        ("--tracking-uri=", "'--tracking-uri': '' is empty"),
        ("--optuna-storage sqlite:////nothing/here.db", "'sqlite:////nothing/here.db' cannot be used: "),
        ("--jobs 1000000", "'--jobs': 1000000 is not in the range"),
        ("--jobs 1_0", "'1_0' is not a whole number; write it in the digits 0 to 9"),
        ("--jobs ٣", "is not a whole number; write it in the digits 0 to 9"),
        ("--set threads=1000000", "'threads' is 1000000"),
        ("--timeout ٣s", "is not understood"),
        ("--seeds 0,1,,2", "--seeds '0,1,,2' is not understood"),
        ("--seeds 1_0", "--seeds '1_0' is not understood"),
        ("--seeds ٣", "is not understood; give a count up to 10000"),
        ("--budget 300KB", "more than any network that the study's methods can find on resnet8: the costliest is that"),
        ("--budget 4bit,300KB --dry-run", "budget '300KB' is 300.000 KB, more than any network"),
        ("--seeds 1e3", "--seeds '1e3' is not understood"),
        ("--seeds 99999999999", "give a count up to 10000"),
    ],
)
def test_options_that_are_wrong_or_contradict_each_other(bench: Command, options: str, message: str) -> None:
    assert message in bench(*SMALL, *options.split()).refusal
    assert nothing_was_begun()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods sbs,sbss", "unknown method 'sbss': did you mean 'sbs'?"),
        ("--methods sbs,", "--methods 'sbs,' has an empty entry"),
        ("--methods sbs,sbs", "--methods sbs,sbs names one twice; each may appear once"),
        ("--model resnet21", "unknown model 'resnet21': did you mean 'resnet20'?"),
        ("--model resnet8,resnet20", "names several models; give one, or add --growth depth"),
        ("--growth depth --model resnet8,", "--model 'resnet8,' has an empty entry"),
        ("--dataset cifar", "unknown dataset 'cifar': did you mean 'cifar10"),
        ("--device tpu", "'tpu' is no device; allowed: auto, cpu, cuda or cuda:N"),
        ("--batch-size 1", "'--batch-size': 1 is not in the range"),
        ("--rounds 1", "'--rounds': 1 is not in the range"),
        ("--threads 0", "'--threads': 0 is not in the range"),
        ("--precision fp16", "'--precision': 'fp16' is not one of"),
        ("--compile auto", "'--compile': 'auto' is not one of"),
        ("--growth width", "'--growth': 'width' is not one of"),
        ("--plot growth.svg", "--plot growth.svg has no effect without --growth; add --growth bits"),
        ("--growth bits --plot growth.doc", "--plot 'growth.doc' is not understood; give a file that ends in .svg"),
        ("--growth bits --plot missing/growth.svg", "--plot 'missing/growth.svg': there is no folder 'missing'"),
        ("--growth bits --methods fixed --compile off", "--growth bits: fixed cannot choose from 8"),
    ],
)
def test_measuring_speed_of_what_does_not_exist(bench: Command, options: str, message: str) -> None:
    assert message in bench("speed", *options.split()).refusal
    assert nothing_was_begun()


class _Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def _write_checkpoint(kind: str, path: Path, proof: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Attack(proof)))
    elif kind == "archive":
        torch.save({"conv1.weight": _Attack(proof)}, path)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "is damaged or holds more than tensors"),
        ("archive", "is damaged or holds more than tensors"),
        ("truncated", "is damaged or holds more than tensors"),
        ("empty", "is damaged or holds more than tensors"),
        ("list", "holds a list; expected a dictionary of tensors"),
        ("other model", "does not fit resnet8: it lacks 'bn1.weight', 'bn1.bias', 'bn1.running_mean' and "),
        ("folder", "cannot read the checkpoint"),
    ],
)
def test_a_checkpoint_that_is_hostile_or_of_something_else(
    bench: Command, tmp_path: Path, kind: str, message: str
) -> None:
    checkpoint, proof = tmp_path / "given.pt", tmp_path / "executed"
    _write_checkpoint(kind, checkpoint, proof)
    refusal = bench(*SMALL, "--set", f"task.checkpoint={checkpoint}").refusal
    assert message in refusal and str(checkpoint) in refusal
    assert not proof.exists()
    assert nothing_was_begun()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04N."])
def test_data_files_that_are_not_what_they_should_be(bench: Command, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(content)
    refusal = bench(*SMALL[:6], "cifar10", "--data-dir", tmp_path / "data").refusal
    assert str(tmp_path / "data") in refusal
    assert nothing_was_begun()


def test_a_data_folder_that_is_a_file(bench: Command, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "is a file" in bench(*SMALL, "--data-dir", tmp_path / "data").refusal


@pytest.mark.parametrize("name", ["../../etc", "/etc", "..", ""])
@pytest.mark.parametrize("command", ["report", "status"])
def test_names_of_studies_that_are_paths(bench: Command, finished: Any, command: str, name: str) -> None:
    assert "no study" in bench(command, name, "--store", finished.store.root).refusal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('methods = "sbs"', "'methods' is 'sbs'"),
        ("seeds = 3", "'seeds' is 3"),
        ("seeds = [1.5]", "'seeds.0' is 1.5"),
        ("[task]\nvalidation_fraction = 1.5", "'task.validation_fraction' is 1.5"),
        ("schedule = 'quick'\n[options.sbs]\nbits = [4, 2]", "options.sbs"),
        ('[options]\nsbs = "x"', "options.sbs"),
        ("[store]\npath = 3", "unknown specification key 'store'"),
        ("methods = []", "'methods'"),
        ('device = "cuda:x"', "'device' is 'cuda:x'"),
        ('methods = ["fixed"]', 'spec.toml\' states no schedule; add schedule = "quick" (or short, paper)'),
        ('name = "a b"', "'name' is 'a b'"),
    ],
)
def test_specifications_that_are_wrong(bench: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.toml").write_text(text)
    assert message in bench("run", "--spec", tmp_path / "spec.toml").refusal
    assert nothing_was_begun()


def test_a_specification_that_is_a_folder(bench: Command, tmp_path: Path) -> None:
    assert "spec" in bench("run", "--spec", tmp_path).refusal


@pytest.mark.parametrize("damage", ["truncated", "edited", "garbage"])
@pytest.mark.parametrize("command", ["report", "status", "ui", "sync"])
def test_a_study_file_that_is_damaged(bench: Command, copied: Path, command: str, damage: str) -> None:
    file = copied / "studies" / "tiny" / "study.json"
    text = file.read_text()
    changed = {"truncated": text[:40], "edited": text.replace('"fixed"', '"sbs_q"'), "garbage": "[]"}
    file.write_text(changed[damage])
    refusal = bench(command, "tiny", "--store", copied).refusal
    assert f"{file}' is damaged; run the study's command again" in refusal


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission(bench: Command, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    assert "cannot write to the store" in bench(*SMALL, "--store", tmp_path / "store").refusal


def test_a_policy_of_an_unknown_model_or_with_impossible_filters(bench: Command, tmp_path: Path) -> None:
    layer = {"weight_bits": 8, "activation_bits": 8, "kept_filters": None}
    policy = {"model": "resnet9", "dataset": "digits", "layers": {"conv1": layer}}
    (tmp_path / "p.json").write_text(json.dumps(policy))
    assert "unknown model 'resnet9'" in bench("cost", "--policy", tmp_path / "p.json").refusal
    for filters in ([], [0, 0], [1, 0], [-1], [0.5], "all", [99999]):
        policy |= {"model": "resnet8", "layers": {"conv1": layer | {"kept_filters": filters}}}
        (tmp_path / "p.json").write_text(json.dumps(policy))
        assert "conv1" in bench("cost", "--policy", tmp_path / "p.json").refusal


def test_a_run_whose_stored_specification_was_edited_is_made_anew(
    bench: Command, copied: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(path for path in sorted((copied / "runs").iterdir()))
    stored = json.loads((folder / "spec.json").read_text())
    stored["depends_on"]["seed"] = 77
    write_checked(folder / "spec.json", stored)
    tiny.work(tiny.spec(), copied)
    assert json.loads((folder / "spec.json").read_text())["depends_on"]["seed"] != 77
    assert folder.with_name(f"{folder.name}.stale-1").is_dir()
    shutil.rmtree(copied)
