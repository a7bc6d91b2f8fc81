"""Measure the time that reports of large studies take, and the size of their page, on stores with made-up results.

    python -m tests.scale.report_time [--out DIR] [--budgets 4] [RUNS …]

Each store has ten methods at a number of budgets, tunings of four trials, policies of ResNet-20, and curves of 60
epochs; one run in twenty failed. Reports are made in this process, as by `bench report STUDY --out DIR`.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.reporting.report import make_document, write_document
from bench.results.tables import StudyResults
from bench.store.files import write_bytes
from tests import fake_store

METHODS = [
    *("sbs", "sbs_q", "sbs_p", "cost_only", "dnas", "multi_path"),
    *("prune_then_quantize", "quantize_then_prune", "fixed", "full_precision"),
]
TRIALS, SEARCH_EPOCHS, FINETUNE_EPOCHS = 4, 30, 30
FAILED = 0.05
LAYERS = [f"stages.{stage}.{block}.conv{conv}" for stage in range(3) for block in range(3) for conv in (1, 2)]
WIDTHS = {layer: 16 << int(layer.split(".")[1]) for layer in LAYERS}


def policy(rng: random.Random) -> dict[str, Any]:
    """Return random bits and filters of a ResNet-20."""
    layers = {"conv1": (8, 8, None), **{layer: _layer(rng, layer) for layer in LAYERS}, "fc": (8, 8, None)}
    keys = ("weight_bits", "activation_bits", "kept_filters")
    entries = {name: dict(zip(keys, entry, strict=True)) for name, entry in layers.items()}
    return {"model": "resnet20", "dataset": "cifar100", "layers": entries}


def _layer(rng: random.Random, layer: str) -> tuple[int, int, list[int] | None]:
    kept = sorted(rng.sample(range(WIDTHS[layer]), rng.randint(4, WIDTHS[layer]))) if layer.endswith("1") else None
    return rng.choice((2, 4, 8)), rng.choice((2, 4, 8)), kept


def curves(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Return figures of every epoch."""
    for phase, epochs in (("search", SEARCH_EPOCHS), ("finetune", FINETUNE_EPOCHS)):
        for epoch in range(1, epochs + 1):
            figures = {"loss": 3 / epoch + rng.random(), "accuracy": 60 - 40 / epoch + rng.random()}
            cost = {"cost": fake_store.BUDGET_BOPS * (1 + 3 / epoch)} if phase == "search" else {}
            yield {"phase": phase, "epoch": epoch, "epochs": epochs, **figures, **cost}


def write_compact(path: Path, document: Any) -> None:
    """Write a JSON file without waiting for the disk."""
    import json

    write_bytes(path, json.dumps(document).encode(), durable=False)


def fill(root: Path, runs: int, budgets: int) -> dict[str, Any]:
    """Make a store with a study of a number of runs; return the study's document."""
    rng = random.Random(0)  # noqa: S311  (figures that look real, no secrets)
    fake = fake_store.FakeStore(root, name="large", spec={"task": {"dataset": "cifar100", "model": "resnet20"}})
    cells = [(method, f"{width + 2}bit", width) for width in range(budgets) for method in METHODS]
    for method, budget, _ in cells:
        identity = fake.tuning(method, [0.1 * (number + 1) for number in range(TRIALS)], budget=budget)
        for number in range(TRIALS):
            path = fake.store.unit("trials", f"{identity}-{number}") / "trial.json"
            trial = {"number": number, "knobs": {"strength": 0.1 * (number + 1)}, "raw_cost": 41e6, "cost": 39e6}
            figures = {"repaired_gates": 1, "within_budget": True, "validation_top1": 60.0, "seconds": 9.0}
            write_compact(path, trial | figures | {"policy": policy(rng), "curves": list(curves(rng))})
    for number in range(runs):
        method, budget, width = cells[number % len(cells)]
        seed = number // len(cells)
        if rng.random() < FAILED:
            fake.failed(method, seed, "NaN loss", budget=budget)
            continue
        top1 = 60 + 2 * width + rng.gauss(0, 0.5)
        metrics = {"bops": fake_store.BUDGET_BOPS * (width + 1) * (1 - 0.03 * rng.random())}
        run = fake.run(
            method, seed, top1, budget=budget, metrics=metrics, tuning=f"tuning-{method}-{budget}", filters=WIDTHS
        )
        folder = fake.store.unit("runs", run)
        write_compact(folder / "policy.json", policy(rng))
        write_compact(folder / "curves.json", list(curves(rng)))
    document: dict[str, Any] = fake.document()
    return document


def measure(runs: int, budgets: int, root: Path, out: Path) -> None:
    """Make a store and all its reports, and print the times."""
    from bench.store.files import Store

    document = fill(root, runs, budgets)
    began = time.perf_counter()
    made = make_document(StudyResults(Store(root), document))
    read = time.perf_counter()
    files = write_document(made, out)
    ended = time.perf_counter()
    size = (out / "index.html").stat().st_size / 1e6
    sys.stdout.write(
        f"{runs:6} runs: read and summed up in {read - began:.1f} s, {len(files)} files drawn and written in "
        f"{ended - read:.1f} s, page of {size:.1f} MB\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budgets", type=int, default=4)
    parser.add_argument("counts", nargs="*", type=int, default=[100, 1000, 10_000])
    asked = parser.parse_args()
    for count in asked.counts:
        with tempfile.TemporaryDirectory() as folder:
            out = asked.out or Path(folder) / "report"
            measure(count, asked.budgets, Path(folder) / "store", out)


if __name__ == "__main__":
    main()
