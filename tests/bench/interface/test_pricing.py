"""Prices of policies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bench import BenchError, price
from tests.kinds_of_networks import CLASSES, IMAGE, Base


def test_a_price_is_that_of_the_command(bench: Callable[..., Any]) -> None:
    costs = price("resnet8", 4, dataset="digits")
    printed = json.loads(bench("cost", "--model", "resnet8", "--dataset", "digits", "--bits", 4, "--json").out)
    assert costs.to_json() == printed
    assert costs.frame["bops"].sum() == costs.total("bops") == printed["bops"]
    assert list(costs.frame["name"]) == [layer["name"] for layer in printed["layers"]]


def test_a_policy_can_be_in_a_file(tmp_path: Path) -> None:
    policy = {"model": "resnet8", "dataset": "digits", "layers": {}}
    names = price("resnet8", 4, dataset="digits").frame["name"]
    policy["layers"] = {name: {"weight_bits": 2, "activation_bits": 2, "kept_filters": None} for name in names}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    costs = price("resnet8", tmp_path / "policy.json", dataset="digits")
    assert set(costs.frame["weight_bits"]) == {2}


def test_a_module_can_be_priced_and_is_not_changed() -> None:
    model = Base()
    before = list(model.named_modules())
    costs = price(model, 4, image_shape=IMAGE)
    assert costs.cost.macs > 0 and list(model.named_modules()) == before
    assert price(costs.network, 8).total("bops") > (costs.total("bops") or 0)
    with pytest.raises(BenchError, match="a module needs the shape of its images"):
        price(nn.Linear(3, CLASSES), 4)


@pytest.mark.parametrize("policy", [1.5, float("nan"), None, [4], {"stem": 4}, 0, True, 64])
def test_what_is_no_policy_is_refused_in_one_line(policy: Any) -> None:
    with pytest.raises(BenchError, match=r"; give a Policy, the path|allowed: a whole number from 1 to 32"):
        price("resnet8", policy, dataset="digits")
