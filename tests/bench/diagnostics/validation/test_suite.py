"""`bench validate`: every method of ours passes, and each check finds what it is there for, and only that."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.diagnostics import validation
from bench.diagnostics.validation.behaviour import difference
from bench.diagnostics.validation.results import check_finite
from bench.diagnostics.validation.small_task import SmallTask, make_small_task
from bench.diagnostics.validation.suite import CHECKS, GUIDE, CheckResult, validate
from bench.diagnostics.validation.under_test import MethodUnderTest, at_most
from bench.diagnostics.validation.verdicts import EndlessError, Violation
from bench.plugins import entry_points
from bench.plugins.method_files import snake_case
from tests.plugins import faulty_methods

LIGHT: dict[str, dict[str, Any]] = {
    "clado": {"batches": 1, "bits": [2, 4]},
    "evopress": {"generations": 4, "offspring": 8, "survivors": [2, 1], "images": [16, 64], "initial": 8},
    "greedy": {"batches": 1},
    "haq": {"episodes": 4, "warmup_episodes": 2},
    "hawq": {"draws": 4, "images": 16},
    "hawq_v3": {"draws": 4, "images": 16},
    "ip": {"batches": 1},
}
"""Options that shorten searches whose length does not follow from the schedule."""
FAULTY = dict(faulty_methods.faulty())
PAGE = Path(__file__).parents[4] / GUIDE


@pytest.fixture(scope="module")
def small_task() -> SmallTask:
    """One small task for all tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_small_task()
    torch.set_num_threads(threads)
    return made


@pytest.fixture
def under_test_of(small_task: SmallTask, plugin: Callable[..., None]) -> Callable[[type[Any]], MethodUnderTest]:
    """Puts a class under test by its name, with little patience."""

    def made(kind: type[Any]) -> MethodUnderTest:
        name = snake_case(kind.__name__)
        plugin("methods", name, kind)
        hasty = SmallTask(task=small_task.task, pretrained=small_task.pretrained, patience=6.0)
        return MethodUnderTest(name=name, small_task=hasty)

    return made


def failures(under_test: MethodUnderTest) -> dict[str, CheckResult]:
    return {result.check: result for result in validate(under_test) if result.verdict == "FAIL"}


# --- ours ---


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(entry_points.available("methods")))
def test_every_method_keeps_the_contract(small_task: SmallTask, name: str) -> None:
    found = failures(MethodUnderTest(name=name, small_task=small_task, options=LIGHT.get(name, {})))
    assert not found, "\n".join(f"{finding.check}: {finding.found}" for finding in found.values())


# --- what each check is there for ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", [faulty_methods.Sound, faulty_methods.Direct, faulty_methods.Replacing])
def test_sound_methods_pass(under_test_of: Callable[..., MethodUnderTest], kind: type[Any]) -> None:
    findings = list(validate(under_test_of(kind)))
    assert [finding for finding in findings if finding.verdict == "FAIL"] == []
    assert [finding.check for finding in findings] == [check.name for check in CHECKS]


SAID = {
    "SummaryWithoutSource": "'source' is empty",
    "SummaryWithDeviationsAsText": "a single one needs a comma behind it",
    "OptionsNotStrict": "not a subclass of bench.api.Options",
    "OptionsWithoutTypes": r"slack = \{'no such': \['value'\]\} is accepted",
    "KnobsUpsideDown": r"the range of knob 'other' is Knob\(low=2.0, high=1.0",
    "CapabilitiesNotMixed": "mixed_precision=False, but the plain search gave layers different bits: .*8/8",
    "CapabilitiesWithoutPruning": "prunes=False, but the plain search removed filters of",
    "CapabilitiesWithAnotherQuantizer": "own_quantizer=True, but the property 'quantizer' returns the common one",
    "SearchReturnsNothing": "search returned NoneType, not a bench.method.SearchResult",
    "SearchRaises": r"ValueError: it was told to \(.*faulty_methods.py:\d+\)",
    "PolicyOfFloats": r"layer '.*' of .*: weight_bits is \d+\.0; allowed: a whole number from 1 to 32",
    "PolicyForgetsALayer": "the policy has no entry for layer",
    "DecisionsOtherThanThePolicy": "decisions give layer '.*' LayerPolicy.*, the policy LayerPolicy.weight_bits=3",
    "NetworkWithoutAllWeights": "the state does not fit the float model; it must have all its names.*Missing key",
    "RecordWithATensor": r"type Tensor is not JSON serializable \(under 'loss'\)",
    "RepeatsNever": "another result the second time: state differs in .*; draw from job.noise",
    "GlobalGeneratorsAreDrawnFrom": "it draws from a global random generator",
    "NameIsASeed": "it depends on the method's name",
    "TestSplitIsRead": r"job.task.data.test is read at .*faulty_methods.py:\d+",
    "InputsPretrainedIsTrained": "job.pretrained is changed",
    "InputsImagesAreChanged": "images or labels of job.task.data are changed",
    "AllowanceIsExceeded": "its weights saw 9 training batches, but the schedule of the search has 6",
    "InterruptionLosesTheOptimizer": "batch 4 of 6, it continues from its checkpoint and state differs",
    "InterruptionIsCaught": "an interruption was caught by the method",
    "MemoryIsKept": r"\d+ more tensors \(.* KB\) are in memory after 2 more searches",
    "MemoryOfObjects": "more Python objects are in memory",
    "BudgetIsExceeded": "the policy costs .* × a budget that is within reach",
    "ImpossibleBudgetIsAnError": r"ZeroDivisionError: float division by zero \(.*faulty_methods.py:\d+\)",
    "ImpossibleBudgetNamesAnotherCost": "as the nearest cost, cheapest.. costs",
    "ImpossibleBudgetIsIgnored": "which nothing meets, ends without UnreachableBudgetError",
    "ImpossibleBudgetNeverEnds": "EndlessError: it had not ended after",
    "CheapestIsTooDear": "the highest strength search found a policy of .* BOPs, but cheapest.. says",
    "CheapestIsOutOfReach": "cheapest.. costs .* BOPs, but with a budget of .* the search ends at",
    "CheapestIsNoPolicy": "cannot be pruned",
    "CostliestIsTooCheap": "the plain search found a policy of .* BOPs, but costliest.. says",
    "CostliestIsNoPolicy": "cannot be pruned",
    "OtherLayersReadEverywhere": r"on a network with attention: .*no attribute 'weight'",
    "OtherLayersEmptied": r"on a network with depthwise .*'expand.0' keeps filters \[\]; allowed: one or",
    "ExtremesDiverge": "NaN, infinite or unusable after the search",
    "StrengthWorksBackwards": "a larger strength must mean a cheaper network",
}


def test_every_check_has_a_method_that_it_must_find() -> None:
    assert SAID.keys() == FAULTY.keys()
    for check in CHECKS:
        begin = "".join(word.capitalize() for word in check.name.split())
        assert any(name.startswith(begin) for name in FAULTY), check.name


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_a_fault_is_found_by_its_check_and_no_other(under_test_of: Callable[..., MethodUnderTest], name: str) -> None:
    found = failures(under_test_of(FAULTY[name]))
    ((check, finding),) = found.items()
    assert name.startswith("".join(word.capitalize() for word in check.split()))
    assert re.search(SAID[name], finding.found), finding.found
    assert "\n" not in finding.found
    topic = finding.see.partition("'")[2].rstrip("'")
    assert f"**{topic}.**" in PAGE.read_text(), topic


def test_what_is_out_of_time_is_ended() -> None:
    with pytest.raises(EndlessError, match="not ended after 0 s"), at_most(0.05):
        while True:
            pass
    with at_most(5):
        pass


def test_any_bit_makes_a_difference(small_task: SmallTask) -> None:
    under_test = MethodUnderTest(name="fixed", small_task=small_task)
    one = under_test.search_plainly()
    name, value = next(iter(one.state.items()))
    one_bit = torch.nextafter(value, value + 1)
    for field, other, told in (
        ("state", {**one.state, name: one_bit}, f"state differs in {name}"),
        ("clips", {"a.weight": 1.0}, "clips differ"),
        (
            "policy",
            one.policy.with_layer(small_task.task.network.middle[0].name, weight_bits=1),
            "the policy is another one",
        ),
        ("quantizers", {"a": value}, "quantizers differs in a"),
    ):
        assert told == difference(SimpleNamespace(**{**vars(one), field: other}), one)  # type: ignore[arg-type]
    assert difference(one, one) is None


def test_offsets_of_signed_inputs_may_be_negative_and_clip_values_may_not(small_task: SmallTask) -> None:
    result = MethodUnderTest(name="fixed", small_task=small_task).search_plainly()
    check_finite(replace(result, clips={"a.offset": -0.5, "a.weight": 0.5}))
    for clips in ({"a.offset": math.nan}, {"a.weight": 0.0}, {"a.activation": -0.5}):
        with pytest.raises(Violation, match=next(iter(clips))):
            check_finite(replace(result, clips=clips))


# --- the command ---


def test_a_line_for_each_check_and_a_verdict(bench: Callable[..., Any]) -> None:
    answer = bench("validate", "fixed")
    assert (answer.status, answer.err) == (0, ""), answer.out
    first, *lines, last = answer.out.splitlines()
    assert first == "fixed on resnet8, digits"
    assert [line[6:23].strip() for line in lines] == [check.name for check in CHECKS]
    assert {line[:4].strip() for line in lines} == {"pass", "n/a"}
    assert last == f"fixed keeps the contract: {len(CHECKS) - 5} checks passed, 5 do not apply"


FILE = """
from bench.method import Capabilities, Method, SearchResult
from bench.compression.policy import uniform


class Loud(Method):
    summary = "for tests"
    source = "these tests"
    capabilities = Capabilities(budget="direct")

    def search(self, job):
        policy = uniform(job.task.network, 8)
        return SearchResult(policy=policy, state=job.undefined)
"""


def test_a_methods_file_with_what_is_wrong_in_it(bench: Callable[..., Any]) -> None:
    Path("loud.py").write_text(FILE)
    answer = bench("validate", "loud.py:Loud")
    assert answer.status == 1
    assert f"loud ({Path.cwd()}/loud.py:Loud) on resnet8, digits" in answer.out
    assert (
        "FAIL  search             AttributeError: 'SearchJob' object has no attribute 'undefined' (loud.py:13) "
        "[see docs/adding-a-method.md, 'Result']"
    ) in answer.out
    assert "1 of 24 checks failed" in answer.out
    found = json.loads(bench("validate", "loud.py:Loud", "--json").out)
    assert (found["method"], found["failed"], len(found["checks"])) == ("loud", 1, len(CHECKS))
    assert found["checks"][3]["verdict"] == "FAIL"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sbss"], "unknown method 'sbss': did you mean 'sbs'?"),
        (["gone.py:Class"], "cannot read the method's file"),
        (["fixed", "--model", "resnet9"], "unknown model 'resnet9'"),
        (["fixed", "--dataset", "digit"], "unknown dataset 'digit'"),
        (["fixed", "--set", "options.fixed.bit=3"], "unknown key 'options.fixed' option 'bit'"),
        (["fixed", "--set", "search.epochs=3"], "is no option of fixed; allowed here: --set options.fixed.KEY=VALUE"),
        (["fixed", "--set", "options.sbs.bits=3"], "is no option of fixed"),
    ],
)
def test_what_cannot_be_checked_is_one_line(bench: Callable[..., Any], arguments: list[str], told: str) -> None:
    assert told in bench("validate", *arguments).refusal


def test_options_model_and_data_can_be_chosen(bench: Callable[..., Any]) -> None:
    answer = bench(
        "validate", "fixed", "--set", "options.fixed.bits=3", "--model", "resnet20", "--dataset", "synthetic"
    )
    assert "fixed on resnet20, synthetic" in answer.out
    assert "17 layers 3/3, 2 layers 8/8 bits" in answer.out or "3/3" in answer.out


def test_the_suite_knows_no_method_by_name() -> None:
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in Path(validation.__file__).parent.glob("*.py"))))
    assert not words & (set(entry_points.available("methods")) - {"random", "full_precision"})
