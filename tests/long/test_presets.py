"""Every preset runs to its end with the quick schedule, made still shorter and in one process; its reports are made."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench.spec.sources import build, preset_names, read_preset, with_schedule

SEEDS = 2
HEAVY = {"figure4", "figure4-memory", "figure5"}
"""Four budgets of a deep network: one seed and one trial are enough to see that they run."""
SHORTER = {
    "task.train_images": 640,
    "pretrain.epochs": 2,
    "search.epochs": 2,
    "finetune.epochs": 1,
    "tuning.trials": 2,
}
REPORTS = {
    "table8": ["ablation_gate_training.csv", "published.csv"],
    "table9": ["ablation_group_size.csv", "published.csv"],
    **{
        name: ["published.csv"]
        for name in ("table1", "table1-pruning", "table2", "table3", "table4", "table4-mobilenet")
    },
    **{name: ["published.csv"] for name in ("table5", "table7", "table10", "table11", "table12", "tableI")},
    "table6": ["published.csv", "pareto_latency.csv", "pareto_energy.csv"],
    "figure4-memory": ["pareto_memory.csv", "tradeoff_memory.svg", "policy-bits.svg"],
    "figure4": ["pareto.csv", "tradeoff.svg", "policy-bits.svg"],
    "figure5": ["pareto.csv", "tradeoff.svg", "across_tasks.csv"],
}
"""Tables that a preset has besides the comparison."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: what presets have in common is done once."""
    return tmp_path_factory.mktemp("store")


def bench(*arguments: object) -> str:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_runs_to_its_end_and_is_reported(preset: str, store: Path, tmp_path: Path) -> None:
    heavy = preset in HEAVY
    values = {**SHORTER, "tuning.trials": 1 if heavy else SHORTER["tuning.trials"]}
    spec = build([with_schedule(read_preset(preset), "quick")])
    if "haq" in spec.methods:
        values |= {"options.haq.episodes": 4, "options.haq.warmup_episodes": 2}
    shorter = [f"--set={key}={value}" for key, value in values.items()]
    seeds = 1 if heavy else SEEDS
    bench(
        "run", "--preset", preset, "--schedule", "quick", "--seeds", seeds, "--in-process", "--store", store, *shorter
    )
    runs = pd.read_csv(store / "studies" / spec.name / "runs.csv")
    ended = runs[["method", "budget", "seed", "status", "reason"]]
    assert set(runs["status"]) <= {"done", "unreachable"}, ended.to_string()
    assert set(runs["method"].str.partition("[")[0]) == set(spec.methods)
    assert set(runs["model"]) == {spec.task.model, *spec.further_models}
    bench("report", spec.name, "--store", store, "--out", tmp_path)
    made = {file.name for file in tmp_path.iterdir()}
    assert {"index.html", "table.csv", "table.tex", "table.md", *REPORTS.get(preset, [])} <= made
    assert all(file.stat().st_size for file in tmp_path.iterdir())
