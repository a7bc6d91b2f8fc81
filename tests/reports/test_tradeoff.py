"""The trade-off and the Pareto front, against numbers worked out here."""

import random
from pathlib import Path

from reports.comparison import Comparison
from reports.tradeoff import Tradeoff, pareto_front
from tests import fake_store
from tests.reports.reading import figures_of, records, results_of, rows_in, table_of


def test_the_front_is_what_no_other_mean_beats() -> None:
    rng = random.Random(3)  # noqa: S311  (made-up means, no secrets)
    for _ in range(200):
        means = [{"cost": rng.randint(1, 6), "top1": rng.randint(1, 6)} for _ in range(rng.randint(1, 9))]

        def beats(one: dict[str, int], other: dict[str, int]) -> bool:
            no_worse = one["cost"] <= other["cost"] and one["top1"] >= other["top1"]
            return no_worse and one != other

        slow = {i for i, mean in enumerate(means) if not any(beats(other, mean) for other in means)}
        assert set(pareto_front(means)) == slow


def test_the_tradeoff_shows_every_run_and_every_mean(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    values = {("sbs", "3bit"): [70.0, 72.0], ("sbs", "4bit"): [75.0, 78.0], ("fixed", "4bit"): [71.0]}
    for (method, budget), top1 in values.items():
        fake.seeds(method, top1, budget=budget, metrics={"bops": 30e6 if budget == "3bit" else 40e6})
    fake.failed("dnas", 0, "NaN")
    table = table_of(Tradeoff(), fake, "pareto")
    assert [(row["Method"], row["Budget"], row["Top-1 %"], row["On the front"]) for row in records(table)] == [
        ("sbs", "3bit", "71.00±1.41", "yes"),
        ("sbs", "4bit", "76.50±2.12", "yes"),
        ("fixed", "4bit", "71.00", "no"),
    ]
    runs = rows_in(figures_of(Tradeoff(), fake)["tradeoff"], "run")
    assert sorted((row["method"], row["budget"], row["seed"], row["top1"], row["cost"]) for row in runs) == [
        ("fixed", "4bit", 0, 71.0, 40.0),
        ("sbs", "3bit", 0, 70.0, 30.0),
        ("sbs", "3bit", 1, 72.0, 30.0),
        ("sbs", "4bit", 0, 75.0, 40.0),
        ("sbs", "4bit", 1, 78.0, 40.0),
    ]


def test_what_has_no_budget_is_a_line_that_stretches_no_axis(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 72.0], budget="3bit", metrics={"bops": 30e6})
    fake.seeds("sbs", [71.0], budget="4bit", metrics={"bops": 40e6})
    fake.seeds("full_precision", [80.0, 81.0], budget="", metrics={"bops": 4000e6})
    figure = figures_of(Tradeoff(), fake)["tradeoff"]
    drawn = figure.draw().to_dict()
    lines, *others = drawn["layer"]
    levels = drawn["datasets"][lines["data"]["name"]]
    assert [(row["method"], row["top1"]) for row in levels] == [("full_precision", 80.5)]
    assert "cost" not in str(lines["layer"][0]["encoding"].get("x"))
    assert "log" not in str([layer["encoding"]["x"] for layer in others])
    assert {row["cost"] for row in rows_in(figure, "run")} == {30.0, 40.0}


def test_at_one_budget_nothing_is_drawn_over_the_cost(tmp_path: Path) -> None:
    """All costs lie in the budget's window there, so a front would be chance."""
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 72.0], budget="4bit")
    fake.seeds("fixed", [71.0, 72.0], budget="4bit")
    fake.seeds("full_precision", [80.0, 81.0], budget="")
    assert Tradeoff().build(results_of(fake)) == []
    fake.seeds("fixed", [69.0], budget="3bit")
    assert {part.name for part in Tradeoff().build(results_of(fake))} == {"tradeoff", "pareto"}


def test_cost_is_what_budgets_limit(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    latency = {"budget_measure": "latency", "budget_cost": 2.0}
    fake.seeds("sbs", [70.0, 71.0], budget="2ms", metrics={"latency_ms": 1.96, "cost": 1.96}, **latency)
    slow = {"budget_measure": "latency", "budget_cost": 4.0}
    fake.seeds("sbs", [72.0], budget="4ms", metrics={"latency_ms": 3.92, "cost": 3.92}, **slow)
    for size in (40.0, 60.0):
        limit = {"budget_measure": "memory", "budget_cost": size}
        fake.seeds("sbs", [75.0], budget=f"{size:.0f}KB", metrics={"memory_kb": size - 1}, **limit)
    fake.seeds("full_precision", [80.0], budget=None, metrics={"memory_kb": 300.0})
    assert set(figures_of(Tradeoff(), fake)) == {"tradeoff_memory", "tradeoff_latency"}
    table = table_of(Tradeoff(), fake, "pareto_latency")
    assert [(row["Method"], row["Latency ms"], row["Memory KB"]) for row in records(table)] == [
        ("sbs", "1.9600", "33.2"),
        ("sbs", "3.9200", "33.2"),
    ]
    memory = records(table_of(Tradeoff(), fake, "pareto_memory"))
    found = [(row["Method"], row["Memory KB"]) for row in memory]
    assert found == [("sbs", "39.0"), ("sbs", "59.0"), ("full_precision", "300.0")]
    compared = records(table_of(Comparison(), fake, "table"))
    assert [(row["Budget"], row["Latency ms"], row["% of budget"]) for row in compared[:1]] == [
        ("2ms", "1.9600", "98.0")
    ]
    assert "Energy mJ" not in compared[0]
