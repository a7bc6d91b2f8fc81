"""Variants of a study: models and ablations, and the units that they are made of."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError
from bench.planning.plan import Plan, make_plan
from bench.planning.units import title
from bench.planning.variants import in_words, variants

Planner = Callable[..., Plan]


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Planner:
    def made(*changes: Mapping[str, Any]) -> Plan:
        return make_plan(tiny.spec({"methods": ["sbs", "fixed"], "seeds": [0, 1]}, *changes))

    return made


def test_one_option_is_changed_at_a_time(tiny: SimpleNamespace) -> None:
    spec = tiny.spec({"methods": ["sbs", "fixed"], "ablate": {"group_size": [2, 8], "search.lr": [0.5]}})
    plain, two, eight, rate = variants(spec)
    assert (plain.label, plain.methods, plain.spec.ablate) == ("", ("sbs", "fixed"), {})
    assert (two.label, two.methods, two.spec.options["sbs"]["group_size"]) == ("group_size=2", ("sbs",), 2)
    assert eight.spec.options["sbs"]["group_size"] == 8
    assert (rate.label, rate.methods, rate.spec.search.lr) == ("search.lr=0.5", ("sbs", "fixed"), 0.5)
    assert rate.spec.options == plain.spec.options and two.spec.search == plain.spec.search


def test_an_option_of_one_method_alone(tiny: SimpleNamespace) -> None:
    spec = tiny.spec({"methods": ["sbs", "sbs_q"], "ablate": {"sbs_q.bits": [[2, 4]]}})
    _, changed = variants(spec)
    assert (changed.label, changed.methods) == ("sbs_q.bits=2+4", ("sbs_q",))
    assert changed.spec.options["sbs_q"]["bits"] == [2, 4] and "bits" not in changed.spec.options.get("sbs", {})


@pytest.mark.parametrize(
    ("value", "words"),
    [(1, "1"), (0.001, "0.001"), (True, "True"), ("joint", "joint"), ([2, 4], "2+4"), (1e-5, "1e-05")],
)
def test_values_in_words_have_no_blanks(value: Any, words: str) -> None:
    assert in_words(value) == words


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("groupsize", "unknown option to ablate 'groupsize': did you mean 'group_size'"),
        ("task.model", "give several with --model"),
        ("task.dataset", "a study has one set of data"),
        ("seeds", "unknown option to ablate 'seeds'"),
    ],
)
def test_what_cannot_be_ablated(plan: Planner, key: str, told: str) -> None:
    with pytest.raises(BenchError, match=told):
        plan({"ablate": {key: [1]}})


def test_a_value_that_is_not_allowed(plan: Planner) -> None:
    with pytest.raises(BenchError, match=r"'options\.sbs\.group_size' is 0"):
        plan({"ablate": {"group_size": [1, 0]}})


def test_runs_of_an_ablation_and_the_default_among_them(plan: Planner) -> None:
    without = plan()
    with_ablation = plan({"ablate": {"group_size": [4, 2]}})  # 4 is the network's own
    first, default, changed = with_ablation.ablations
    own = [unit.identity for unit in without.runs]
    assert (first.key, list(first.runs)) == ("", own)
    assert list(default.runs) == [unit.identity for unit in without.runs if unit.method == "sbs"]
    assert len(changed.runs) == 2 and not set(changed.runs) & set(own)
    assert [unit.identity for unit in with_ablation.runs] == [*own, *changed.runs]
    assert {unit.label for unit in with_ablation.runs} == {"sbs", "fixed", "sbs[group_size=2]"}
    assert title(with_ablation.runs[-1]) == "run sbs[group_size=2] 4bit seed 1"
    assert with_ablation.pretrainings == without.pretrainings
    assert len(with_ablation.tunings) == len(without.tunings) + 1


def test_every_model_has_the_whole_study(plan: Planner) -> None:
    both = plan({"further_models": ["resnet20"], "ablate": {"group_size": [2]}})
    small, large = ([unit for unit in both.runs if unit.spec.task.model == model] for model in ("resnet8", "resnet20"))
    assert [(unit.label, unit.seed) for unit in small] == [(unit.label, unit.seed) for unit in large]
    assert not {unit.identity for unit in small} & {unit.identity for unit in large}
    alone = plan({"task": {"model": "resnet20"}, "ablate": {"group_size": [2]}})
    assert [unit.identity for unit in large] == [unit.identity for unit in alone.runs]
    assert {title(unit).partition(" on ")[2] for unit in both.runs} == {"resnet8", "resnet20"}
    budgets = {unit.spec.task.model: unit.budget.limit for unit in both.runs if unit.budget}
    assert budgets["resnet20"] > budgets["resnet8"]  # each has its own 4 bit
