"""Whether seeds find the same policy: the share, and Cohen's κ."""

import itertools
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from bench.results.tables import StudyResults
from reports.agreement import Agreement, mean_kappa
from tests import fake_store


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_cohens(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    one, two = ([draw.choice((2, 4, 8)) for _ in range(40)] for _ in range(2))
    equal, beyond = mean_kappa([one, two])
    assert equal == sum(a == b for a, b in zip(one, two, strict=True)) / 40
    assert beyond == pytest.approx(cohen_kappa_score(one, two))


def test_the_mean_is_over_all_pairs() -> None:
    draw = random.Random(5)  # noqa: S311
    runs = [[draw.choice((2, 4, 8)) for _ in range(12)] for _ in range(9)]
    runs += [runs[0], sorted(runs[0])]  # equal ones, and one with the same numbers of each choice
    pairs = [mean_kappa(pair) for pair in itertools.combinations(runs, 2)]
    expected = [sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
    assert mean_kappa(runs) == pytest.approx(expected)
    assert all(map(math.isnan, mean_kappa([[2, 4], [2]])))


def test_thousands_of_runs_take_no_time_for_each_pair() -> None:
    draw = random.Random(6)  # noqa: S311
    runs = [[draw.choice((2, 4, 8)) for _ in range(20)] for _ in range(4000)]
    began = time.process_time()
    equal, beyond = mean_kappa(runs)
    assert time.process_time() - began < 5  # eight million pairs would take minutes
    assert equal == pytest.approx(1 / 3, abs=0.01) and beyond == pytest.approx(0, abs=0.01)


def test_chance_and_identity() -> None:
    assert mean_kappa([[2, 4, 2, 4], [2, 4, 2, 4]]) == (1.0, 1.0)
    assert mean_kappa([[2, 2, 4, 4], [2, 4, 2, 4]]) == (0.5, 0.0)
    equal, beyond = mean_kappa([[4, 4], [4, 4]])
    assert equal == 1
    assert math.isnan(beyond)


def policy(widths: list[tuple[int, int]], kept: list[int] | None = None) -> dict[str, Any]:
    """Of a network whose first and last layer have 8 bits, and whose second layer may have lost filters."""
    rows = [(8, 8, None), *((w, a, kept if not i else None) for i, (w, a) in enumerate(widths)), (8, 8, None)]
    layers = {
        f"layer{index}": {"weight_bits": w, "activation_bits": a, "kept_filters": k}
        for index, (w, a, k) in enumerate(rows)
    }
    return {"model": "resnet8", "dataset": "digits", "layers": layers}


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Three seeds of a search, two of a fixed width, and one run alone."""
    fake = fake_store.FakeStore(tmp_path)
    found = [[(2, 4), (4, 8)], [(2, 4), (4, 4)], [(4, 4), (2, 8)]]
    for seed, widths in enumerate(found):
        fake.run("sbs", seed, 70.0, policy=policy(widths, [0, 1, 2]), filters={"layer1": 4})
    for seed in range(2):
        fake.run("fixed", seed, 70.0, policy=policy([(4, 4), (4, 4)]))
    fake.run("dnas", 0, 70.0, policy=policy(found[0]))
    return fake


def rows_of(fake: Any) -> dict[str, dict[str, str]]:
    (table,) = Agreement().build(StudyResults(fake.store, fake.document()))
    titles = [column.title for column in table.columns]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in table.rows}


def test_all_pairs_of_seeds_count_alike_and_the_edges_do_not_count(fake: Any) -> None:
    rows = rows_of(fake)
    assert list(rows) == ["sbs", "fixed"]  # one run alone has nobody to agree with
    runs = [[2, 4, 4, 8], [2, 4, 4, 4], [4, 2, 4, 8]]
    pairs = list(itertools.combinations(runs, 2))
    shares = [sum(a == b for a, b in zip(one, two, strict=True)) / 4 for one, two in pairs]
    assert rows["sbs"]["n"] == "3"
    assert rows["sbs"]["Same bits %"] == f"{100 * sum(shares) / 3:.1f}"
    assert rows["sbs"]["κ"] == f"{sum(cohen_kappa_score(one, two) for one, two in pairs) / 3:.2f}"
    assert rows["sbs"]["Weight bits"] == f"{(2 + 4 + 2 + 4 + 4 + 2) / 6:.2f}"
    assert rows["sbs"]["Activation bits"] == f"{(4 + 8 + 4 + 4 + 4 + 8) / 6:.2f}"
    assert rows["sbs"]["Filters pruned %"] == "25.0"
    assert (rows["fixed"]["Same bits %"], rows["fixed"]["κ"], rows["fixed"]["Filters pruned %"]) == ("100.0", "", "")


def test_nothing_without_two_policies(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, policy=policy([(2, 4)]))
    fake.failed("sbs", 1, "it broke")
    assert Agreement().build(StudyResults(fake.store, fake.document())) == []
