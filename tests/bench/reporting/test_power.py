"""How many seeds a difference takes, against the formulas with which it is computed by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.errors import BenchError
from bench.reporting.power import Forecast, forecast, no_forecast_reason, table
from bench.results.statistics import deviation_interval, pairs_needed
from bench.results.tables import StudyResults
from bench.store.files import Store
from tests import fake_store

FIXED = [70.0, 71.0, 72.0, 70.5]
SBS = [70.4, 71.9, 72.1, 71.2]
DNAS = [69.9, 71.4, 71.8, 70.9]
SPREAD = float(np.std(np.subtract(SBS, FIXED), ddof=1))


def forecast_of(fake: SimpleNamespace, detect: float = 0.3, baseline: str | None = None, **spec: object) -> Forecast:
    return forecast(StudyResults(fake.store, fake.document(**spec)), detect, baseline)


@pytest.fixture
def fake(tmp_path: Path) -> SimpleNamespace:
    found = fake_store.FakeStore(tmp_path, spec={"methods": ["fixed", "sbs", "dnas"]})
    for method, values in (("fixed", FIXED), ("sbs", SBS), ("dnas", DNAS)):
        found.seeds(method, values)
    return found


def pretrained(store: Store, identity: str, seconds: float) -> None:
    record = {"id": identity, "status": "done", "times": {"total_seconds": seconds}}
    store.write_record("pretrained", identity, record)


def test_seeds_follow_from_the_spread_of_the_differences(fake: SimpleNamespace) -> None:
    sbs = forecast_of(fake).outlooks[0]
    assert (sbs.group.method, sbs.pairs) == ("sbs", 4) and sbs.deviation == pytest.approx(SPREAD)
    interval = deviation_interval(SPREAD, 4)
    assert sbs.interval.low == pytest.approx(SPREAD * math.sqrt(3 / 9.348), rel=1e-3)
    assert sbs.alone.pairs == pairs_needed(0.3, SPREAD)
    assert (sbs.alone.low, sbs.alone.high) == tuple(pairs_needed(0.3, end) for end in (interval.low, interval.high))
    assert sbs.together.pairs == pairs_needed(0.3, SPREAD, level=0.05 / 2)
    assert sbs.together.pairs > sbs.alone.pairs  # type: ignore[operator]


def test_the_time_is_that_of_the_lacking_runs(fake: SimpleNamespace) -> None:
    for identity, seconds in (("a", 100.0), ("b", 140.0)):
        pretrained(fake.store, identity, seconds)
    document = fake.document() | {"pretrained": ["a", "b", "never-ran"]}
    found = forecast(StudyResults(fake.store, document), 0.3)
    # Every run took 30 s: a pair takes two of them, a seed of the study three, and a pretraining of 120 s.
    assert [outlook.seconds for outlook in found.outlooks] == [180.0, 180.0]
    assert found.seconds_per_seed == 210.0
    sbs = found.outlooks[0]
    assert sbs.alone.pairs is not None
    row = dict(zip((column.title for column in table(found).columns), table(found).rows[0], strict=True))
    assert row["More"] == str(sbs.alone.pairs - 4)
    assert row["Time"] == f"{(sbs.alone.pairs - 4) * 180 / 60:.0f} min"


def test_the_most_demanding_comparison_decides(fake: SimpleNamespace) -> None:
    found = forecast_of(fake)
    needs = [outlook.alone for outlook in found.outlooks]
    most = max(needs, key=lambda need: need.pairs or 0)
    assert most.pairs is not None
    expected = (
        f"Each comparison by itself: {most.pairs} seeds (95 % interval {most.low} to {most.high}), "
        f"{most.pairs - 4} more than there are; all methods: about "
    )
    assert table(found).notes[0].startswith(expected)


def test_a_large_difference_needs_no_more_seeds(fake: SimpleNamespace) -> None:
    shown = table(forecast_of(fake, 5.0))
    assert shown.notes[0].endswith("; there are enough")
    assert shown.rows[0][5:9] == ("2", "2 to 3", "0", "0 s")


def test_a_tiny_difference_is_out_of_reach(fake: SimpleNamespace) -> None:
    shown = table(forecast_of(fake, 0.001))
    assert shown.rows[0][5] == ">10000" and shown.rows[0][7:9] == ("", "")
    assert shown.notes[0].endswith("; not within reach")


def test_another_baseline(fake: SimpleNamespace) -> None:
    found = forecast_of(fake, baseline="dnas")
    assert [outlook.group.method for outlook in found.outlooks] == ["fixed", "sbs"]
    assert {outlook.partner.method for outlook in found.outlooks} == {"dnas"}
    with pytest.raises(BenchError, match="unknown method of study quick 'dnsa': did you mean 'dnas'"):
        forecast_of(fake, baseline="dnsa")


def test_each_budget_has_its_own_baseline(fake: SimpleNamespace) -> None:
    fake.seeds("fixed", [60.0, 61.0], budget="2bit")
    fake.seeds("sbs", [62.0, 61.5], budget="2bit")
    found = forecast_of(fake)
    sbs = next(outlook for outlook in found.outlooks if outlook.group.budget == "2bit")
    assert sbs.deviation == pytest.approx(np.std([2.0, 0.5], ddof=1))
    assert found.level == pytest.approx(0.05 / 3)


def test_failed_and_stale_runs_are_no_pairs(fake: SimpleNamespace) -> None:
    fake.run("sbs", 8, 99.0, fingerprint={"cost_counter": 0})
    fake.run("fixed", 8, 1.0)
    fake.failed("sbs", 9, "NaN loss")
    fake.run("fixed", 9, 1.0)
    sbs = forecast_of(fake).outlooks[0]
    assert sbs.pairs == 4 and sbs.deviation == pytest.approx(SPREAD)


def test_comparisons_without_a_forecast_are_named(fake: SimpleNamespace) -> None:
    fake.run("cost_only", 0, 71.0)
    fake.seeds("sbs_q", [value + 1 for value in FIXED])
    fake.run("sbs_p", 9, 71.0)
    shown = table(forecast_of(fake, methods=["fixed", "sbs", "multi_path"]))
    assert [row[0] for row in shown.rows] == ["sbs", "dnas"]
    assert "cost_only 4bit: 1 pair with fixed; a spread needs two" in shown.notes
    assert "sbs_q 4bit: all 4 differences are equal, so their spread is unknown" in shown.notes
    assert "without a pair with fixed: sbs_p 4bit, multi_path" in shown.notes


def test_one_pair_gives_no_forecast(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["fixed", "sbs"]})
    fake.seeds("fixed", [70.0])
    fake.seeds("sbs", [71.0, 72.0])
    said = no_forecast_reason(forecast_of(fake))
    assert said == (
        "no forecast for study quick yet: sbs 4bit: 1 pair with fixed; a spread needs two; "
        "repeat the study's command with more --seeds to get more pairs"
    )


def test_no_runs_give_no_forecast(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["fixed", "sbs"]})
    said = no_forecast_reason(forecast_of(fake))
    assert said is not None and "without a pair with fixed: sbs" in said and "\n" not in said


def test_two_pairs_give_a_forecast(fake: SimpleNamespace) -> None:
    assert no_forecast_reason(forecast_of(fake)) is None


def test_what_is_outside_its_window_is_not_forecast(fake: SimpleNamespace) -> None:
    """Pairs at unequal cost have a spread too, but their number would answer no question."""
    fake.seeds("fixed", [26.0, 27.0, 25.0, 26.5], budget="20KB", within_budget=False, metrics={"bops": 22.76e6})
    fake.seeds("sbs", [71.0, 72.0, 70.0, 71.7], budget="20KB")
    found = forecast_of(fake)
    assert [outlook.group.budget for outlook in found.outlooks] == ["4bit", "4bit"]
    assert found.level == 0.05 / 2 and found.lacking == ("sbs 20KB",)
