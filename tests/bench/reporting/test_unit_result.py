"""The result of a unit in a few words."""

from typing import Any

import pytest

from bench.reporting.unit_result import result_in_words
from bench.store.files import UnitKind

RUN = {"metrics": {"top1": 89.694, "cost": 39.8e6}, "budget_cost": 40e6, "times": {"total_seconds": 21.4}}


@pytest.mark.parametrize(
    ("kind", "record", "words"),
    [
        ("runs", RUN, "89.69 %, 99.5 % of the budget, 21 s"),
        ("runs", RUN | {"budget_cost": None}, "89.69 %, 21 s"),
        (
            "tuning",
            {"trials_used": 2, "knobs": {"strength": 0.14142}, "tuning_seconds": 37.2},
            "2 trials, λ 0.141, 37 s",
        ),
        ("tuning", {"trials_used": 1, "knobs": {"split": 0.5, "strength": 3}}, "1 trial, split 0.5, λ 3"),
        (
            "pretrained",
            {"metrics": {"validation_top1": 95.2}, "times": {"total_seconds": 7300}},
            "validation 95.20 %, 2.0 h",
        ),
        ("pretrained", {}, ""),
        ("runs", {"metrics": None}, ""),
    ],
)
def test_what_a_unit_gave_and_how_long_it_took(kind: UnitKind, record: dict[str, Any], words: str) -> None:
    assert result_in_words(kind, record) == words
