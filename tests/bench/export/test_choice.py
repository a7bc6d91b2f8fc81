"""The choice of a network for a device: by validation images, among those that fit."""

import json
from typing import Any

import pytest

from bench.compression.policy import load_policy
from bench.costs.counter import price
from bench.errors import BenchError
from bench.export.choice import Candidate, Limits, amount, candidates
from bench.results.tables import StudyResults


def test_candidates_are_ranked_by_validation_and_know_their_memory(digits_study: Any) -> None:
    store = digits_study.store
    found = candidates(StudyResults(store, store.load_study(None)))
    assert {candidate.method for candidate in found} == {"fixed", "width", "full_precision"}
    ranks = [candidate.validation_top1 for candidate in found]
    assert ranks == sorted(ranks, reverse=True)
    for candidate in found:
        policy = load_policy(store.unit("runs", candidate.run) / "policy.json")
        layers = price(digits_study.plan.runs[0].network, policy).layers
        assert 8000 * candidate.flash == sum(layer.weight_memory_bits for layer in layers)
        assert 8000 * candidate.ram == max(layer.activation_memory_bits for layer in layers)


def candidate(**values: Any) -> Candidate:
    """A network that needs 100 KB of flash, 10 KB of RAM and 1 ms."""
    common: dict[str, Any] = {
        "run": "r",
        "method": "m",
        "budget": "4bit",
        "seed": 0,
        "validation_top1": 1.0,
        "top1": 1.0,
    }
    return Candidate(**{**common, "flash": 100.0, "ram": 10.0, "simulated": 1.0, "measured": None, **values})


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (Limits(), True),
        (Limits(flash=100.0, ram=10.0, latency=1.0), True),
        (Limits(flash=99.9), False),
        (Limits(ram=9.9), False),
        (Limits(latency=0.9), False),
        (Limits(latency=5.0, measured=True), False),  # nobody has measured it
    ],
)
def test_limits(limits: Limits, fits: bool) -> None:
    assert limits.allow(candidate()) is fits


def test_amounts() -> None:
    assert (amount("300KB", "flash"), amount("0.5 MB", "ram"), amount("2ms", "latency")) == (300, 500, 2)
    assert amount("800us", "latency") == pytest.approx(0.8)
    for text in ("300", "KB", "0KB", "-1KB", "300ms", "1e3KB", "nanKB"):
        with pytest.raises(BenchError, match=f"--flash '{text}' is no limit"):
            amount(text, "flash")


def test_the_command_shows_the_test_accuracy_of_the_first_alone(bench: Any, digits_study: Any) -> None:
    store = digits_study.store
    best, *others = candidates(StudyResults(store, store.load_study(None)))
    answer = bench("choose", "--store", store.root, "--json")
    assert answer.status == 0
    document = json.loads(answer.out)
    assert [row["run"] for row in document["fitting"]] == [best.run, *(other.run for other in others)]
    assert document["test_top1"] == best.top1
    assert not any("top1" in row for row in document["fitting"])

    smallest = min((best, *others), key=lambda each: each.flash)
    answer = bench("choose", "digits", "--store", store.root, "--flash", f"{smallest.flash + 0.001:.3f}KB")
    assert answer.status == 0
    assert f"test Top-1 of the first: {smallest.top1:.2f} %" in answer.out
    assert f"bench export {smallest.run} --format packed --store" in answer.out
    assert best.run == smallest.run or best.run not in answer.out


def test_nothing_fits(bench: Any, digits_study: Any) -> None:
    answer = bench("choose", "--store", digits_study.store.root, "--flash", "1KB")
    assert answer.status == 1
    assert "none of 3 networks fits; the smallest needs" in answer.out
