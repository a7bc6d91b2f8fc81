"""Comparisons of what two names stand for, in made-up stores."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from bench.reporting.compare import Comparison, compare
from bench.results.selection import select
from tests import fake_store

FIXED = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0]
GAINS = [0.40, 0.55, 0.30, 0.42, 0.50, 0.35]
SBS = [fixed + gain for fixed, gain in zip(FIXED, GAINS, strict=True)]


def compared(fake: SimpleNamespace, first: str, second: str) -> Comparison:
    fake.document()
    return compare(select(fake.store, first), select(fake.store, second))


def two_methods(root: Path, first: Sequence[float], second: Sequence[float]) -> SimpleNamespace:
    fake = fake_store.FakeStore(root, spec={"methods": ["sbs", "fixed"]})
    fake.seeds("sbs", first)
    fake.seeds("fixed", second)
    return fake
