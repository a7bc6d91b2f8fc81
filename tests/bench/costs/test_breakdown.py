import pytest

from bench.compression.policy import uniform
from bench.compression.space_size import policies
from bench.costs.breakdown import Difference, breakdown, side
from bench.costs.measures import MeasureName
from bench.planning.networks import model_shape
from bench.spec.schema import AcceleratorSpec

NETWORK = model_shape("resnet8", "digits")
SPEC = AcceleratorSpec()


def test_one_layer_that_the_accelerator_lacks_leaves_only_itself_and_the_totals_unknown() -> None:
    policy = uniform(NETWORK, 4).with_layer("stages.0.0.conv1", weight_bits=16)
    found = breakdown(SPEC, NETWORK, policy)
    assert found.unknown.keys() == {"stages.0.0.conv1"}
    assert found.total("latency") is found.total("energy") is None
    assert found.total("bops") == found.cost.bops and found.total("memory") == found.cost.memory_kb
    document = found.to_json()
    assert document["latency_ms"] is None and document["search_space"] == policies(NETWORK)
    known = {layer["name"]: layer["cycles"] is not None for layer in document["layers"]}
    assert known == {layer.name: layer.name != "stages.0.0.conv1" for layer in NETWORK.layers}
    assert found.shares("latency") == {} and found.shares("bops")


@pytest.mark.parametrize("measure", ["bops", "memory", "latency", "energy"])
def test_layers_add_up_to_the_total(measure: MeasureName) -> None:
    found = breakdown(SPEC, NETWORK, uniform(NETWORK, 3))
    parts = [found.layer_cost(measure, layer) for layer in found.cost.layers]
    assert sum(part or 0 for part in parts) == pytest.approx(found.total(measure))
    assert sum(found.shares(measure).values()) == pytest.approx(1)


def test_percents_are_of_the_first() -> None:
    found = Difference(first=side("8bit", NETWORK, 8, SPEC), second=side("4bit", NETWORK, 4, SPEC))
    assert found.percent("bops", 0) == 0  # the first layer has 8 bits in both
    assert found.percent("bops", 1) == -75
    assert found.percent("memory", 1) == pytest.approx(-50)
    wide = Difference(first=found.first, second=side("16bit", NETWORK, 16, SPEC))
    assert wide.percent("latency") is None and wide.percent("bops", 1) == 300
