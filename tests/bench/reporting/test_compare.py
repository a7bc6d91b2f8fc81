"""Comparing studies, methods and runs: what is paired, what is left out, what is said of it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from bench.errors import BenchError
from bench.reporting import compare_layers
from bench.reporting.compare import Comparison, compare
from bench.reporting.compare_views import table, to_json, verdicts
from bench.results.selection import select
from bench.results.statistics import smallest_detectable
from tests import fake_store
from tests.bench.reporting.comparing import FIXED, SBS, compared, two_methods


def only_verdict(comparison: Comparison) -> str:
    (found,) = verdicts(comparison)
    return found


# --- one line -----------------------------------------------------------------------------------------------------


def test_two_methods_of_the_latest_study(tmp_path: Path) -> None:
    found = compared(two_methods(tmp_path, SBS, FIXED), "sbs", "fixed")
    (line,) = found.lines
    assert line.seeds == [0, 1, 2, 3, 4, 5] and line.difference is not None
    expected = stats.ttest_rel(SBS, FIXED).confidence_interval(0.95)
    assert (line.difference.interval.low, line.difference.interval.high) == pytest.approx((expected.low, expected.high))
    assert line.p == 2 / 2**6
    assert only_verdict(found) == (
        f"sbs is better than fixed by 0.42 points, 95 % interval [{expected.low:.2f}, {expected.high:.2f}], "
        "6 pairs, p = 0.031"
    )


def test_the_better_one_is_named_first(tmp_path: Path) -> None:
    found = compared(two_methods(tmp_path, SBS, FIXED), "fixed", "sbs")
    forward = compared(two_methods(tmp_path / "again", SBS, FIXED), "sbs", "fixed")
    assert only_verdict(found) == only_verdict(forward)
    assert table(found).rows[0][4] == "-0.42" and table(forward).rows[0][4] == "+0.42"


def test_differences_that_scatter_are_not_distinguishable(tmp_path: Path) -> None:
    differences = [1.0, -0.8, 0.6, -0.9, 0.7, 0.2]
    other = [a + b for a, b in zip(FIXED, differences, strict=True)]
    found = only_verdict(compared(two_methods(tmp_path, other, FIXED), "sbs", "fixed"))
    deviation = math.sqrt(sum((d - sum(differences) / 6) ** 2 for d in differences) / 5)
    limit = smallest_detectable(deviation, 6)
    assert found.startswith("not distinguishable: sbs minus fixed is +0.13 points, 95 % interval [-")
    assert found.endswith(f"; a difference below {limit:.2f} would not have been found reliably with 6 pairs")


def test_few_pairs_are_never_a_proof(tmp_path: Path) -> None:
    fake = two_methods(tmp_path, SBS[:5], FIXED[:5])
    found = compared(fake, "sbs", "fixed")
    assert only_verdict(found).startswith("undecided: sbs minus fixed is +0.43 points, 95 % interval [")
    assert only_verdict(found).endswith("5 pairs (too few for a test, which needs 6)")
    assert table(found).rows[0][6] == "n<6" and math.isnan(found.lines[0].p)


def test_one_pair_has_no_spread(tmp_path: Path) -> None:
    found = compared(two_methods(tmp_path, [71.0], [70.5]), "sbs", "fixed")
    assert only_verdict(found) == (
        "undecided: sbs minus fixed is +0.50 points, 1 pair (too few for a test, which needs 6)"
    )
    assert table(found).rows[0][4:8] == ("+0.50", "", "n<6", "")


@pytest.mark.parametrize("n", [2, 6])
def test_no_difference_at_all(tmp_path: Path, n: int) -> None:
    found = compared(two_methods(tmp_path, FIXED[:n], FIXED[:n]), "sbs", "fixed")
    assert only_verdict(found) == f"no difference seen: sbs and fixed have the same Top-1 in all {n} pairs"
    json.dumps(to_json(found), allow_nan=False)


def test_only_common_seeds_are_pairs(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for seed, top1 in ((0, 71.0), (1, 72.0), (7, 99.0)):
        fake.run("sbs", seed, top1)
    for seed, top1 in ((1, 71.0), (0, 70.5), (2, 10.0), (3, 10.0)):
        fake.run("fixed", seed, top1)
    found = compared(fake, "sbs", "fixed")
    assert found.lines[0].seeds == [0, 1]
    shown = table(found)
    assert shown.rows[0][1:5] == ("2", "71.50", "70.75", "+0.75")
    assert "Seeds of A without a partner: 7" in shown.notes
    assert "Seeds of B without a partner: 2, 3" in shown.notes


def test_no_common_seed(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 71.0)
    fake.run("fixed", 1, 70.0)
    found = compared(fake, "sbs", "fixed")
    assert only_verdict(found) == "not comparable: no seed in common (sbs has 0, fixed has 1)"
    assert table(found).rows[0][1:5] == ("0", "71.00", "70.00", "")


def test_what_has_no_result_is_counted(tmp_path: Path) -> None:
    fake = two_methods(tmp_path, SBS, FIXED)
    fake.failed("sbs", 6, "NaN loss")
    fake.run("sbs", 7, 99.0, fingerprint={"cost_counter": 0})
    fake.missing("later")
    fake.run("fixed", 6, 10.0, status="running")
    document = fake.document()
    document["places"] = {"later": {"method": "sbs", "budget": "4bit", "seed": 9}}
    fake_store.write_checked(fake.store.study("quick") / "study.json", document)
    found = compare(select(fake.store, "sbs"), select(fake.store, "fixed"))
    assert found.lines[0].seeds == [0, 1, 2, 3, 4, 5]
    assert "Left out of A: 1 failed, 1 stale, 1 missing" in table(found).notes
    assert "Left out of B: 1 running" in table(found).notes
    assert found.second.left_out == {"running": 1}


def test_a_method_without_results(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["sbs", "fixed", "dnas"]})
    fake.seeds("sbs", SBS)
    fake.failed("fixed", 0, "NaN loss")
    found = compared(fake, "sbs", "fixed")
    assert only_verdict(found) == "not comparable: A and B have no runs with a result on the same task and budget"
    assert table(found).rows == () and "Left out of B: 1 failed" in table(found).notes
    assert compared(fake, "sbs", "dnas").lines == ()


def test_costs_stand_side_by_side(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    tuning = fake.tuning("sbs", [0.2, 0.4], seconds=45.0)
    fake.seeds("sbs", [71.0, 72.0], tuning=tuning, metrics={"bops": 39e6})
    fake.seeds("fixed", [70.0, 71.0], metrics={"bops": 40e6})
    found = compared(fake, "sbs", "fixed")
    # A search takes 10 s with seed 0 and 11 s with seed 1.
    assert table(found).rows[0][8:] == ("39.00", "40.00", "55.5", "10.5")
    figures = to_json(found)["lines"][0]["first"]
    assert (figures["bops"], figures["search_seconds"], figures["tuning_seconds"]) == (39e6, 10.5, 45.0)


# --- several lines ------------------------------------------------------------------------------------------------


def test_budgets_are_paired_where_both_have_several(budgets: SimpleNamespace) -> None:
    found = compared(budgets, "sbs", "fixed")
    assert [line.label for line in found.lines] == ["4bit", "2bit", "mean of these"]
    assert [line.difference.mean for line in found.lines if line.difference] == pytest.approx([1.42, 3.42, 2.42])
    assert found.lines[2].difference is not None and found.lines[2].difference.n == 6  # a seed counts once
    assert [line.p for line in found.lines] == pytest.approx([2 / 32, 2 / 32, 1 / 32])  # all together is one test
    assert any(
        note.startswith("p: two-sided sign-flip test, Holm-corrected over 2 tests;") for note in table(found).notes
    )
    # What two tests of six pairs cannot show is not said to be shown.
    first, second, together = verdicts(found)
    assert first.startswith("4bit: not distinguishable: ") and "6 pairs, p = 0.062 (Holm over 2)" in first
    assert second.startswith("2bit: not distinguishable: ")
    assert together.startswith("mean of these: sbs is better than fixed by 2.42 points")


def test_all_lines_together_take_the_seeds_that_every_line_has(budgets: SimpleNamespace) -> None:
    for method, top1 in (("sbs", 99.0), ("fixed", 10.0)):
        budgets.run(method, 6, top1, budget="4bit")
    found = compared(budgets, "sbs", "fixed")
    assert [len(line.seeds) for line in found.lines] == [7, 6, 6]
    assert found.lines[2].difference is not None and found.lines[2].difference.mean == pytest.approx(2.42)


def test_a_budget_can_be_named(budgets: SimpleNamespace) -> None:
    found = compared(budgets, "quick/sbs/2bit", "quick/fixed/2bit")
    (line,) = found.lines
    assert line.difference is not None and line.difference.mean == pytest.approx(3.42)
    assert only_verdict(found).startswith("quick/sbs/2bit is better than quick/fixed/2bit by 3.42 points")
    (line,) = compared(budgets, "quick/sbs/4bit", "quick/sbs/2bit").lines
    assert line.difference is not None and line.difference.mean == pytest.approx(-2.0)


def test_a_reference_without_a_budget_meets_every_budget(budgets: SimpleNamespace) -> None:
    found = compared(budgets, "sbs", "full_precision")
    assert [line.label for line in found.lines] == ["4bit|–", "2bit|–", "mean of these"]


def test_models_are_paired_where_both_have_several(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for model, gain in (("resnet8", 1.0), ("resnet20", 2.0)):
        for seed, top1 in enumerate(FIXED):
            fake.run("fixed", seed, top1, model=model, id=f"fixed-{model}-{seed}")
            fake.run("sbs", seed, top1 + gain, model=model, id=f"sbs-{model}-{seed}")
    found = compared(fake, "sbs", "fixed")
    assert [(line.label, line.difference.mean) for line in found.lines if line.difference] == [
        ("resnet8", 1.0),
        ("resnet20", 2.0),
        ("mean of these", 1.5),
    ]


@pytest.fixture
def studies(tmp_path: Path) -> SimpleNamespace:
    old = fake_store.FakeStore(tmp_path, name="old", spec={"finetune": {"epochs": 2}})
    new = fake_store.FakeStore(tmp_path, name="new", spec={"finetune": {"epochs": 5}})
    for fake, gain in ((old, 0.0), (new, 1.0)):
        for method in ("fixed", "sbs"):
            for seed, top1 in enumerate(FIXED):
                fake.run(method, seed, top1 + gain + seed / 100 * gain, id=f"{fake.name}-{method}-{seed}")
    for seed in range(3):
        old.run("fixed", seed, 60.0, budget="2bit", id=f"old-2bit-{seed}")
        new.run("dnas", seed, 60.0, id=f"new-dnas-{seed}")
    old.document()
    return new


def test_two_studies_of_unequal_training_get_no_verdict(tmp_path: Path) -> None:
    stores = {}
    for name, updates, values in (("short", 250, FIXED), ("long", 2500, [value + 1 for value in FIXED])):
        fake = fake_store.FakeStore(tmp_path, name=name)
        fake.seeds("sbs", values, metrics={"trained_updates": updates}, id_suffix=f"-{name}")
        fake.document()
        stores[name] = fake.store
    found = compare(select(stores["short"], "short/sbs"), select(stores["long"], "long/sbs"))
    assert only_verdict(found) == (
        "no verdict: short/sbs: its networks saw 250 updates after pretraining, the others 2,500; "
        "long/sbs: its networks saw 2,500 updates after pretraining, the others 250"
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (
            {"measured": "a" * 64, "batch": 1},
            {"measured": "b" * 64, "batch": 1},
            "21.6ms is a time or energy by the measured times aaaaaaaa in one and 21.6ms by the measured times bbbbb",
        ),
        (
            {"hardware": "bf_e", "batch": 16, "depthwise": "dense"},
            {"hardware": "bf_e", "batch": 1, "depthwise": "dense"},
            r"on bf_e \(batch 16, depthwise dense\) in one and 21.6ms on bf_e \(batch 1, depthwise dense\) in the",
        ),
    ],
)
def test_budgets_of_different_hardware_are_refused(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], expected: str
) -> None:
    def study(name: str, accelerator: dict[str, Any], measure: str = "latency", budget: str = "21.6ms") -> str:
        fake = fake_store.FakeStore(tmp_path, name=name)
        for run in fake.seeds("sbs", FIXED, budget=budget, budget_measure=measure, id_suffix=name):
            stated = {"id": run, "unit": {}, "depends_on": {"accelerator": accelerator}, "specification": {}}
            fake_store.write_checked(fake.store.unit("runs", run) / "spec.json", stated)
        fake.document()
        return name

    store = fake_store.FakeStore(tmp_path).store
    names = [study("one", one), study("same", one), study("other", other)]
    first, same, second = (select(store, name) for name in names)
    assert [line.label for line in compare(first, same).lines] == ["sbs 21.6ms"]
    with pytest.raises(BenchError, match=expected) as error:
        compare(first, second)
    assert "\n" not in str(error.value)
    bops = [
        select(store, study(f"bops-{index}", hardware, "bops", "4bit")) for index, hardware in enumerate((one, other))
    ]
    assert [line.label for line in compare(*bops).lines] == ["sbs 4bit"]


def test_two_studies_have_a_line_for_what_both_have(studies: SimpleNamespace) -> None:
    found = compared(studies, "new", "old")
    assert [line.label for line in found.lines] == ["fixed 4bit", "sbs 4bit"]
    assert [line.difference.mean for line in found.lines if line.difference] == pytest.approx([1.025, 1.025])
    assert "The studies differ in finetune.epochs (5 | 2)" in table(found).notes
    assert compare_layers.tables(found) == []


def test_a_method_of_another_study(studies: SimpleNamespace) -> None:
    found = compared(studies, "new/sbs", "old/sbs")
    assert found.lines[0].difference is not None and found.lines[0].difference.n == 6
    assert found.title == "A = new/sbs, B = old/sbs"


def test_other_data_are_said(studies: SimpleNamespace) -> None:
    document = studies.document()
    document["data_checksum"] = "e" * 64
    fake_store.write_checked(studies.store.study("new") / "study.json", document)
    found = compare(select(studies.store, "new"), select(studies.store, "old"))
    assert "The studies' data or splits differ: pairs share a seed, not the images" in table(found).notes
    assert "Left out of A: 15 stale" in table(found).notes


def test_a_study_is_not_compared_with_a_method(studies: SimpleNamespace) -> None:
    with pytest.raises(BenchError, match=r"'new' is a study and 'old/sbs' a method; name two studies, .* new/METHOD"):
        compared(studies, "new", "old/sbs")


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sbss", "unknown study, method or run 'sbss': did you mean 'sbs'"),
        ("quik", "unknown study, method or run 'quik': did you mean 'quick'"),
        ("quik/sbs", "unknown study 'quik': did you mean 'quick'"),
        ("quick/fixd", "unknown method of study quick 'fixd': did you mean 'fixed'"),
        ("quick/fixd/4bit", "unknown method of study quick 'fixd': did you mean 'fixed'"),
        ("quick/sbs/4bits", "unknown budget of quick/sbs '4bits': did you mean '4bit'"),
        ("quick/", "unknown method of study quick ''"),
        ("sbs-", "run 'sbs-' is ambiguous: 6 ids begin with it .sbs-4bit-0, sbs-4bit-1, sbs-4bit-2, sbs-4bit-3 …"),
        ("zzzz", "unknown study, method or run 'zzzz': known: fixed, quick, sbs"),
    ],
)
def test_wrong_names_say_what_was_meant(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(BenchError, match=expected):
        compared(two_methods(tmp_path, SBS, FIXED), name, "fixed")


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run one first"):
        select(fake_store.FakeStore(tmp_path).store, "sbs")


def test_runs_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 71.0, id="abcd1234")
    fake.run("sbs", 1, 71.0, id="abcd12345678")
    fake.run("fixed", 0, 70.0, id="ffff0000")
    (tmp_path / "runs" / "ffff0000.stale-1").mkdir()
    found = compared(fake, "abcd1234", "ffff")
    assert (found.first.name, found.second.name, found.first.kind) == ("abcd1234", "ffff0000", "run")
    assert only_verdict(found) == (
        "undecided: abcd1234 minus ffff0000 is +1.00 points, 1 pair (too few for a test, which needs 6)"
    )
    with pytest.raises(BenchError, match=r"'abcd' is ambiguous: 2 ids begin with it \(abcd1234, abcd12345678\)"):
        compared(fake, "abcd", "ffff")
    with pytest.raises(BenchError, match="unknown study, method or run 'fff'"):
        compared(fake, "fff", "ffff")


def test_a_run_is_looked_for_in_older_studies_and_in_none(studies: SimpleNamespace) -> None:
    studies.document()
    assert select(studies.store, "old-sbs-3").results.name == "old"
    orphan = studies.run("sbs", 9, 70.0, id="orphan")
    studies.runs.remove(orphan)
    studies.document()
    found = select(studies.store, "orphan")
    assert found.results.name == "of run orphan" and list(found.runs["seed"]) == [9]


def test_a_study_comes_before_a_method_of_the_same_name(tmp_path: Path) -> None:
    other = fake_store.FakeStore(tmp_path, name="sbs")
    other.run("fixed", 0, 50.0, id="in-sbs")
    other.document()
    fake = two_methods(tmp_path, SBS, FIXED)
    fake.document()
    assert select(fake.store, "sbs").kind == "study"
    assert select(fake.store, "quick/sbs").kind == "method"
