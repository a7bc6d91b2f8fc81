"""Regret is computed rightly, truth is what the harness measures, and the page shows the published numbers."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.api import (
    Capabilities,
    Method,
    Policy,
    SearchJob,
    SearchResult,
    calibrate,
    compress,
    evaluate,
    fit,
    generator,
    reestimate_norms,
)
from bench.spec.schema import FinetuneSchedule
from tests.long import regret
from tests.long.known_answers import METHODS, VALUES, Space, Truth, choices, key_of_policy, policy_of_key
from tests.long.known_task import registered

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "known-answers"
SMALL = {
    **VALUES,
    "seeds": [0],
    "task": {**VALUES["task"], "model": "tests.long.known_task:chain2"},
    "pretrain": {**VALUES["pretrain"], "epochs": 3},
    "search": {**VALUES["search"], "epochs": 1},
    "finetune": {**VALUES["finetune"], "epochs": 1},
    "tuning": {"tolerance": 0.2, "trials": 2},
}
"""Sixteen policies, some of them within the wide window of the middle budget."""


def trained_top1(job: SearchJob, policy: Policy) -> float:
    """Train the network of a policy and measure it on the test part, step by step as `docs/api.md` describes it."""
    schedule, data = FinetuneSchedule.model_validate(SMALL["finetune"]), job.task.data
    network = compress(job.float_model(), job.task.network, policy)
    calibrate(network, data.calibration_batches(1, schedule.batch_size)[0])
    reestimate_norms(network, data, schedule.batch_size)
    fit(network, data, schedule, generator("order", "finetune", job.seed), lambda _: None)
    return evaluate(network, data, data.test).top1


class Exhaustive(Method):
    """Trains every policy within the window, and takes the best on the test part, which no other method may look at."""

    summary = "Every policy within the window"
    capabilities = Capabilities(budget="direct", mixed_precision=True)

    def search(self, job: SearchJob) -> SearchResult:
        space = Space.of(job.task.network, job.tolerance)
        policies = [policy_of_key(job.task.network, key) for key in space.costs]
        inside = [policy for policy in policies if (1 - job.tolerance) * job.budget <= job.price(policy) <= job.budget]
        return SearchResult(policy=max(inside, key=lambda policy: trained_top1(job, policy)), state=job.pretrained)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, pd.DataFrame]:
    """The truth of the small space, and choices in it."""
    folder = tmp_path_factory.mktemp("known")
    with registered({"exhaustive": Exhaustive}):
        truth = Truth(SMALL, folder)
        truth.train(truth.space.costs, [0])
        return truth, choices(truth, ["exhaustive", "random", "greedy"], truth.space.budgets[1:2], folder / "store")


def test_a_method_that_tries_everything_has_no_regret(small: tuple[Truth, pd.DataFrame]) -> None:
    truth, chosen = small
    table = truth.table()
    assert len(table) == 16 and table["seed0"].nunique() > 1
    of = regret.windows(table, [truth.space.budgets[1].text], SMALL["tuning"]["tolerance"])
    assert 4 <= len(of[0].truth) < 16
    regrets = regret.regrets(table, chosen, of).set_index("method")["regret"]
    assert regrets["exhaustive"] == 0
    assert (regrets >= 0).all()


def test_truth_is_what_runs_of_the_harness_measure(small: tuple[Truth, pd.DataFrame]) -> None:
    truth, chosen = small
    assert set(chosen["status"]) == {"done"}
    assert [truth.rows[row.policy, 0] for row in chosen.itertuples()] == list(chosen["top1"])


def test_trained_policies_are_kept(small: tuple[Truth, pd.DataFrame], tmp_path: Path) -> None:
    truth, _ = small
    with registered():
        again = Truth(SMALL, truth.folder)
    assert again.rows == truth.rows


def test_only_policies_of_the_space_have_a_key(small: tuple[Truth, pd.DataFrame]) -> None:
    network = small[0].space.network
    assert all(key_of_policy(network, policy_of_key(network, key)) == key for key in small[0].space.costs)
    outside = policy_of_key(network, "22 44").with_layer(network.middle[0].name, weight_bits=3)
    with pytest.raises(ValueError, match="32 44 is not one of the space"):
        key_of_policy(network, outside)


WINDOWS = [[70.0, 75.0, 80.0], [60.0, 90.0]]


@pytest.mark.parametrize("reached", [(80.0, 90.0), (75.0, 60.0), (70.0, 60.0), (72.0, 70.0)])
def test_chance_is_counted_over_all_combinations(reached: tuple[float, float]) -> None:
    combinations = [sum(drawn) >= sum(reached) for drawn in product(*WINDOWS)]
    share = regret.share_as_good([np.array(window) for window in WINDOWS], reached)
    assert share == sum(combinations) / len(combinations)


def test_regret_is_the_distance_to_the_best_within_the_window() -> None:
    truth = pd.DataFrame(
        {"cost": [100.0, 98.0, 97.0, 96.9], "seed0": [80.0, 76.0, 70.0, 99.0], "seed1": [82.0, 78.0, 74.0, np.nan]},
        index=pd.Index(["44", "42", "24", "22"], name="policy"),
    )
    chosen = pd.DataFrame(
        {"method": ["a", "a", "b"], "budget": [100] * 3, "seed": [0, 1, 0], "policy": ["42", "24", None]}
    )
    (window,) = regret.windows(truth, ["100"])
    rows = regret.regrets(truth, chosen, [window])
    assert list(window.truth) == [81.0, 77.0, 72.0]
    assert list(rows["regret"]) == [4.0, 9.0]
    assert list(rows["better"]) == [1 / 3, 2 / 3]
    assert window.noise == pytest.approx(np.sqrt((2 + 2 + 8) / 3))


def test_the_best_policy_is_measured_by_seeds_that_did_not_choose_it() -> None:
    seeds = pd.DataFrame({"seed0": [90.0, 80.0], "seed1": [70.0, 85.0], "seed2": [92.0, 80.0], "seed3": [72.0, 85.0]})
    assert regret.Window("1", seeds).unbiased_best == ((70 + 72) / 2 + 80) / 2


def test_the_page_shows_the_published_numbers() -> None:
    page = regret.PAGE.read_text()
    for name, text in regret.tables(RESULTS).items():
        assert f"<!-- known answers: {name} -->\n\n{text.strip()}\n\n<!-- end -->" in page


@pytest.mark.long
def test_every_method_chooses_from_the_space(tmp_path: Path) -> None:
    with registered():
        truth = Truth(SMALL, tmp_path)
        chosen = choices(truth, METHODS, truth.space.budgets, tmp_path / "store")
    assert set(chosen["status"]) <= {"done", "unreachable"}
    assert set(chosen.dropna(subset=["policy"])["method"]) == set(METHODS)
