"""Curves of searches and fine-tunings, against numbers worked out here."""

import math
import statistics
from pathlib import Path

import pytest

from bench.store.files import write_json
from reports.convergence import Convergence
from reports.shared.drawing import curves
from tests import fake_store
from tests.reports.reading import figures_of, records, rows_in, table_of


def test_curves_are_means_over_seeds_with_cost_as_share_of_the_budget(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    runs = fake.seeds("sbs", [70.0, 71.0])
    for run, offset in zip(runs, (0.0, 1.0), strict=True):
        # Two stages, each of which counts its epochs anew.
        entries = [
            {"phase": "search", "epoch": epoch, "loss": 2.0 + offset, "accuracy": 50.0, "cost": bops}
            for epoch, bops in ((1, 80e6), (2, 60e6), (1, 44e6))
        ]
        write_json(fake.store.unit("runs", run) / "curves.json", entries)
    figures = figures_of(Convergence(), fake)
    cost = rows_in(figures["search-cost"], "epoch")
    assert [(row["epoch"], row["mean"]) for row in cost] == [(1, 200.0), (2, 150.0), (3, 110.0)]
    loss = rows_in(figures["search-loss"], "epoch")[0]
    deviation = statistics.stdev([2.0, 3.0])
    assert (loss["mean"], loss["n"]) == (2.5, 2)
    assert math.isclose(loss["low"], 2.5 - deviation, rel_tol=1e-6)
    assert math.isclose(loss["high"], 2.5 + deviation, rel_tol=1e-6)
    assert "finetune-loss" not in figures
    (row,) = records(table_of(Convergence(), fake, "convergence"))
    assert (row["Search epochs"], row["Search cost, % of budget"], row["Fine-tuning loss"]) == ("3", "110.00±0.00", "")


def test_long_curves_keep_their_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.convergence.MOST_POINTS", 10)
    fake = fake_store.FakeStore(tmp_path)
    run = fake.run("sbs", 0, 70.0)
    entries = [{"phase": "search", "loss": 1.0, "accuracy": 1.0} for _ in range(36)]
    write_json(fake.store.unit("runs", run) / "curves.json", entries)
    figure = figures_of(Convergence(), fake)["search-loss"]
    assert [row["epoch"] for row in rows_in(figure, "epoch")] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 36]
    assert "The figure shows every 4th epoch and the last" in figure.notes


@pytest.mark.parametrize(("most", "kind"), [(900.0, None), (15_000.0, "log")])
def test_shares_far_above_the_budget_do_not_hide_the_others(most: float, kind: str | None) -> None:
    rows = [
        {"method": "sbs", "budget": "4bit", "epoch": epoch, "mean": mean, "low": mean - 120, "high": mean, "n": 3}
        for epoch, mean in ((1, most), (2, 101.0))
    ]
    area, line, *_ = (layer.to_dict() for layer in curves(["sbs"], rows, "epoch", "share", 100.0))
    assert area["encoding"]["y"]["scale"].get("type") == line["encoding"]["y"]["scale"].get("type") == kind
    assert bool(area.get("transform")) == (kind == "log")  # a band that reaches 0 has no place on such an axis
