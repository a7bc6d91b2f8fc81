"""Stores with several budgets."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import fake_store
from tests.bench.reporting.comparing import FIXED, SBS


@pytest.fixture
def budgets(tmp_path: Path) -> SimpleNamespace:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["sbs", "fixed", "full_precision"]})
    for budget, gain in (("4bit", 1.0), ("2bit", 3.0)):
        fake.seeds("fixed", FIXED, budget=budget)
        fake.seeds("sbs", [value + gain for value in SBS], budget=budget)
    fake.seeds("full_precision", [80.0] * 6, budget=None)
    return fake
