"""The list of all keys of a specification agrees with the schema."""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from bench.spec.keys import attribute_texts, keys
from bench.spec.schema import Schedule, StudySpec, TuningSpec
from bench.spec.sources import build, merge, nested

FREE = {"method_files", "options", "ablate"}
"""Tables whose keys are names of methods or of other keys."""


def paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in FREE:
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_is_listed_once() -> None:
    listed = [key.name for key in keys()]
    assert len(set(listed)) == len(listed)
    always = set(paths(StudySpec().model_dump(mode="json")))  # without keys that are omitted when they are unset
    assert always <= set(listed)
    omitted = {key.name for key in keys() if key.default == "unset" or key.table == "task.images"}
    assert set(listed) - always == omitted - always


def test_defaults_are_those_of_the_schema() -> None:
    values: dict[str, Any] = {}
    for key in keys():
        if key.default not in ("unset", "{}") and key.table != "task.images":
            values = merge(values, nested(key.name, tomllib.loads(f"value = {key.default}")["value"]))
    assert build([values]) == StudySpec()


def test_every_key_says_what_it_means() -> None:
    assert all(key.meaning and key.allowed and len(key.summary) > 10 for key in keys())
    (match,) = (key for key in keys() if key.name == "tuning.match")
    assert match.allowed == '"dual", "hinge", "lambda"' and match.default == '"dual"'
    (lr,) = (key for key in keys() if key.name == "search.max_grad_norm")
    assert (lr.allowed, lr.default) == ("number above 0 or unset", "unset")


def test_texts_of_attributes_are_those_of_the_docstring() -> None:
    texts = attribute_texts(TuningSpec)
    assert texts.keys() == TuningSpec.model_fields.keys()
    assert texts["repair"].endswith("the smallest margins.") and "\n" not in texts["match"]
    assert attribute_texts(Schedule)["lr"] == "Largest learning rate."
