import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.errors import BenchError
from bench.spec.schema import StudySpec, canonical_hash
from bench.spec.sources import build, parse_setting, read_preset, with_schedule


def refusal(*layers: dict[str, Any]) -> str:
    with pytest.raises(BenchError) as caught:
        build(layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is refused ---


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("method", "methods"),
        ("budget", "budgets"),
        ("task.datasett", "dataset"),
        ("pretrain.epoch", "epochs"),
        ("search.momentun", "momentum"),
        ("finetune.calibrated", "calibrate"),
        ("tuning.trails", "trials"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    told = refusal(parse_setting(f"{key}=1"))
    assert f"'{key.rpartition('.')[2]}': did you mean '{nearest}'?" in told


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("search.epochs=0", "'search.epochs' is 0, but must be at least 1"),
        ("search.epochs=2.0", "'search.epochs' is 2.0, but must be a whole number"),
        ('search.epochs="2"', "'search.epochs' is '2', but must be a whole number"),
        ("search.epochs=true", "'search.epochs' is True"),
        ("search.lr=0", "'search.lr' is 0, but must be above 0"),
        ("search.lr=nan", "'search.lr' is nan"),
        ("search.lr=inf", "'search.lr' is inf, but must be a finite number"),
        ("search.momentum=1", "'search.momentum' is 1, but must be below 1"),
        ("tuning.tolerance=1", "'tuning.tolerance' is 1, but must be below 1"),
        ("tuning.match=hinged", "'tuning.match' is 'hinged', but must be 'dual', 'hinge' or 'lambda'"),
        ("task.validation_fraction=0", "'task.validation_fraction' is 0"),
        ("seeds=[]", "'seeds' is [], but must be a list of 1 or more"),
        ("seeds=[0, 1, 0]", "0 is listed twice"),
        ("seeds=[1000000]", "'seeds.0' is 1000000, but must be below 1000000; change it with --set seeds=…"),
        ("methods=[]", "'methods' is []"),
        ('methods=["sbs", "sbs"]', "sbs is listed twice; each may appear once"),
        ("methods=sbs", "'methods' is 'sbs', but must be a list in square brackets"),
        ('budgets=["4bit", "4bit"]', "4bit is listed twice"),
        ("device=tpu", "'device' is 'tpu', but must be a text of the form"),
        ("name=../elsewhere", "'name' is '../elsewhere', but must be a text of the form"),
        ("name=", "'name' is '', but must be a text of the form"),
        ("search=3", "'search' is 3, but must be a table of keys and values"),
        ("pretrain.milestones=[3]", "milestones have no effect with decay = 'cosine'; use decay = 'step'"),
        ("pretrain.decay=step", "decay = 'step' needs milestones, e.g. [80, 120]"),
    ],
)
def test_a_value_that_is_not_allowed(setting: str, told: str) -> None:
    message = refusal(parse_setting(setting))
    assert told in message
    assert "--set" in message


def test_models_are_listed_once() -> None:
    twice = {"task": {"model": "resnet8"}, "further_models": ["resnet20", "resnet8"]}
    assert "a model is listed twice in resnet8, resnet20, resnet8" in refusal(twice)
    one = {"task": {"model": "resnet8", "checkpoint": "a.pt"}, "further_models": ["resnet20"]}
    assert "task.checkpoint is for one model, but there are 2" in refusal(one)


def test_options_of_a_method_that_does_not_take_part() -> None:
    told = refusal({"methods": ["fixed"], "options": {"sbs": {"group_size": 4}}})
    assert told == "options are given for 'sbs', which is not among the methods fixed"


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build([]).search.epochs = 3  # type: ignore[misc]


# --- identity ---


def test_the_hash_is_the_same_on_every_machine_for_ever() -> None:
    assert canonical_hash({"b": [1, 2.5, None], "a": "λ"}) == "a6b0cfeb7847f1c8"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def shuffled(value: Any, draws: random.Random) -> Any:
    """The same document with its keys in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, draws)) for key, inner in value.items()]
        draws.shuffle(items)
        return dict(items)
    return [shuffled(inner, draws) for inner in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(document=st.dictionaries(st.text(max_size=5), JSON, max_size=5), draws=st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order_of_keys(document: dict[str, Any], draws: random.Random) -> None:
    identity = canonical_hash(document)
    assert canonical_hash(shuffled(document, draws)) == identity
    assert canonical_hash(json.loads(json.dumps(document))) == identity
    assert canonical_hash({**document, "one more key": 1}) != identity


def test_hashes_distinguish_the_order_of_lists_and_numbers_from_texts() -> None:
    documents: list[Any] = [{"a": [1, 2]}, {"a": [2, 1]}, {"a": ["1", 2]}, {"a": [[1], 2]}, {"a": [1.5, 2]}, {}]
    assert len({canonical_hash(document) for document in documents}) == len(documents)


def test_what_was_read_back_is_the_same_study() -> None:
    spec = build([with_schedule(read_preset("cifar100-paper"))])
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec
