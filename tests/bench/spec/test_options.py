from typing import Annotated

import pytest
from pydantic import Field, ValidationError, model_validator

from bench.errors import BenchError
from bench.spec.options import Options, explain


class Inner(Options):
    rate: Annotated[float, Field(gt=0)] = 0.1
    count: int = 3


class Outer(Options):
    needed: str
    flag: bool = False
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _fits(self) -> "Outer":
        if self.flag and self.inner.count > 3:
            raise ValueError("Flag and a count above 3 exclude each other")
        return self


def message(text: str, where: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json(text)
    error = explain(caught.value, where, Outer)
    assert isinstance(error, BenchError) and "\n" not in str(error)
    return str(error)


def test_values_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rate = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("value", ['"0.1"', "true", "null", "[0.1]", "NaN", "Infinity", "-Infinity"])
def test_numbers_are_finite_numbers_only(value: str) -> None:
    with pytest.raises(ValidationError):
        Inner.model_validate_json(f'{{"rate": {value}}}')


@pytest.mark.parametrize("value", ["1.0", '"1"', "true", "1.5"])
def test_whole_numbers_are_whole_numbers_only(value: str) -> None:
    with pytest.raises(ValidationError):
        Inner.model_validate_json(f'{{"count": {value}}}')


def test_a_whole_number_is_a_number_too() -> None:
    assert Inner.model_validate_json('{"rate": 2}').rate == 2.0


def test_defaults_are_checked() -> None:
    class Wrong(Options):
        rate: Annotated[float, Field(gt=0)] = -1.0

    with pytest.raises(ValidationError, match="greater than 0"):
        Wrong()


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ('{"needed": "a", "inner": {"rat": 1}}', "", "'rat': did you mean 'rate'? known: count, rate"),
        ('{"needed": "a", "innner": 1}', "", "'innner': did you mean 'inner'? known: flag, inner, needed"),
        ('{"needed": "a", "xyzzy": 1}', "options.sbs", "options.sbs"),
        ("{}", "", "the specification lacks 'needed'; add it with --set needed=…"),
        ("{}", "options.sbs", "lacks 'options.sbs.needed'; add it with --set options.sbs.needed=…"),
        ('{"needed": 3}', "", "'needed' is 3, but must be a text; change it with --set needed=…"),
        (
            '{"needed": "a", "inner": {"rate": -1}}',
            "options.sbs",
            "'options.sbs.inner.rate' is -1, but must be above 0; change it with --set options.sbs.inner.rate=…",
        ),
    ],
)
def test_the_first_problem_in_one_line(text: str, where: str, expected: str) -> None:
    assert expected in message(text, where)


def test_a_broken_rule_over_several_values_is_reported_without_repeating_them_all() -> None:
    broken = '{"needed": "a", "flag": true, "inner": {"count": 4}}'
    rule = "flag and a count above 3 exclude each other"
    assert message(broken) == rule
    assert message(broken, "options.sbs") == f"'options.sbs': {rule}; change it with --set options.sbs.KEY=VALUE"
