"""The work that is left in a study, estimated from what has ended."""

from pathlib import Path

import pytest

from bench.results.status import seconds_left, unit_states
from tests.fake_store import FakeStore


def left(fake: FakeStore) -> float | None:
    study = fake.document()
    study["places"] = {run: {"method": run.partition("-")[0], "model": "resnet8"} for run in fake.runs}
    return seconds_left(study, list(unit_states(fake.store, study)))


def test_units_of_a_method_take_as_long_as_those_that_ended(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, times={"total_seconds": 30.0})
    fake.run("sbs", 1, 70.0, times={"total_seconds": 50.0})
    fake.run("fixed", 0, 70.0, times={"total_seconds": 5.0})
    assert left(fake) is None  # nothing is left
    fake.failed("fixed", 1, "NaN loss")
    assert left(fake) is None  # a failure is final
    fake.run("sbs", 2, status="interrupted")
    fake.run("fixed", 2, status="killed")
    assert left(fake) == pytest.approx(45.0)


def test_there_is_no_estimate_before_each_kind_of_unit_has_ended_once(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0)
    fake.run("dnas", 0, status="interrupted")
    assert left(fake) is None
