"""Whole studies on an image folder with photographs of real size: pretraining, tuning, search, fine-tuning, report."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.datasets.images import picture

CLASSES = "abcd"
SMALL = {
    "task.image_size": 32,
    "task.validation_fraction": 0.25,
    "pretrain.epochs": 1,
    "search.epochs": 1,
    "finetune.epochs": 1,
    "tuning.trials": 1,
    "tuning.finetune_epochs": 0,
    "threads": 1,
    **{f"{stage}.batch_size": 8 for stage in ("pretrain", "search", "finetune")},
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 8 and 3 photographs, 500×375 and its like, upright and across."""
    root = tmp_path_factory.mktemp("photographs")
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                size = (500, 375) if number % 2 else (333, 500)
                image = picture(1000 * label + number + 500 * (part == "val"), *size)
                image.save(root / part / name / f"{number}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: what two studies have in common is done once."""
    return tmp_path_factory.mktemp("store")


def study(data: Path, store: Path, name: str, *arguments: str) -> pd.DataFrame:
    """The runs of a study that was worked on in this test's process tree."""
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "bench", "run", "--dataset", "imagefolder", "--data-dir", str(data)]
    command += ["--store", str(store), "--device", "cpu", "--in-process", "--name", name, "--seeds", "1"]
    ran = subprocess.run([*command, *settings, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    runs = pd.read_csv(store / "studies" / name / "runs.csv")
    assert list(runs["status"]) == ["done"] * len(runs)
    return runs


def test_resnet18_at_a_bop_budget(photographs: Path, store: Path) -> None:
    runs = study(photographs, store, "bops", "--model", "resnet18", "--methods", "sbs,full_precision")
    sbs = runs[runs["method"] == "sbs"].iloc[0]
    assert bool(sbs["within_budget"])
    assert 0.97 * sbs["budget_cost"] <= sbs["cost"] == sbs["bops"] <= sbs["budget_cost"]
    assert sbs["latency_ms"] > 0 and pd.isna(runs[runs["method"] == "full_precision"].iloc[0]["latency_ms"])


def test_mobilenet_v2_at_budgets_of_the_accelerator(photographs: Path, store: Path) -> None:
    """At the paper's rate four updates move no threshold far, so that repair has little to price."""
    budgets = {"0.9x:ms": "latency_ms", "0.9x:mJ": "energy_mj"}
    of_the_study = ("--model", "mobilenet_v2", "--methods", "sbs", "--budget", ",".join(budgets))
    runs = study(photographs, store, "accelerator", *of_the_study, "--set=options.sbs.threshold_lr=paper")
    assert set(runs["budget"]) == set(budgets)
    for run in runs.to_dict("records"):
        figure = budgets[run["budget"]]
        assert run["within_budget"] and run["budget_measure"] == figure.partition("_")[0]
        assert 0.97 * run["budget_cost"] <= run["cost"] == run[figure] <= run["budget_cost"]
