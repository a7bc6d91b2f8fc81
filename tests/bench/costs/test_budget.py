import pytest

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.budget import Budget, parse_budget
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import BenchError
from bench.models.resnet import resnet20
from bench.spec.schema import AcceleratorSpec

FULL = 41_798_598_656


@pytest.fixture(scope="module")
def network() -> NetworkShape:
    return trace(resnet20(3, 100), (3, 32, 32), name="resnet20", dataset="cifar100")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("4bit", 674_643_968),
        ("32bit", FULL),
        ("630.6M", 630.6e6),
        ("2G", 2e9),
        ("0.01T", 1e10),
        ("700000k", 7e8),
        ("674643968", 674_643_968),
        ("1x", FULL),
        ("0.016x", 0.016 * FULL),
    ],
)
def test_every_form_is_read(network: NetworkShape, text: str, limit: float) -> None:
    budget = parse_budget(text, network, 0.03)
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    assert (budget.text, budget.tolerance, budget.measure) == (text, 0.03, BOPS)


MEASURED = [
    ("249.328KB", Memory(), 249.328),
    ("1.5MB", Memory(), 1500.0),
    ("0.05ms", Latency(AcceleratorSpec()), 0.05),
    ("0.1mJ", Energy(AcceleratorSpec()), 0.1),
]


@pytest.mark.parametrize(("text", "measure", "limit"), MEASURED, ids=[text for text, *_ in MEASURED])
def test_every_measure_is_read(network: NetworkShape, text: str, measure: Measure, limit: float) -> None:
    budget = parse_budget(text, network, 0.03)
    assert (budget.text, budget.measure) == (text, measure)
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    policy = uniform(network, 4)
    assert budget.price(network, policy) == measure.price(network, policy)
    assert measure.unit in measure.in_words(limit) and measure.unit in measure.title


@pytest.mark.parametrize("unit", ["ms", "mJ"])
def test_latency_and_energy_are_those_of_the_accelerator_that_is_asked_for(network: NetworkShape, unit: str) -> None:
    one, many = (
        parse_budget(f"0.01{unit}", network, 0.0, AcceleratorSpec(batch=batch)).price(network, uniform(network, 4))
        for batch in (1, 16)
    )
    assert many < one  # weights are fetched once for all images


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("1955KB", r"full precision, 1,954\.752 KB"),
        ("0KB", r"full precision, 1,954\.752 KB"),
        ("9999ms", r"at 8 bits, .* ms"),
        ("9999mJ", r"at 8 bits, .* mJ"),
    ],
)
def test_measured_budget_outside_of_what_a_network_can_cost_is_refused(
    network: NetworkShape, text: str, most: str
) -> None:
    """The accelerator does not compute at full precision; its costliest network has its highest precision."""
    with pytest.raises(BenchError, match=most):
        parse_budget(text, network, 0.03)


def test_window_of_another_measure() -> None:
    budget = Budget(text="100KB", limit=100.0, tolerance=0.1, measure=Memory())
    assert [budget.matches(cost) for cost in (89.9, 90.1, 100.0, 100.1)] == [False, True, True, False]


@pytest.mark.parametrize("bits", range(1, 33))
def test_uniform_policy_matches_its_own_budget(network: NetworkShape, bits: int) -> None:
    budget = parse_budget(f"{bits}bit", network, 0.0)
    assert budget.matches(price(network, uniform(network, bits)).bops)


# MACs of resnet20 on CIFAR-100, counted by hand: 442,368 + 6,400 in the first and last layer, which have 8 bits.
EDGES, MIDDLE = 448_768, 40_370_176
TWO, THREE, FOUR = (bits**2 * MIDDLE + 64 * EDGES for bits in (2, 3, 4))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("2.5bit", (TWO + THREE) / 2),
        ("2.25bit", TWO + (THREE - TWO) / 4),
        ("3.1bit", THREE + (FOUR - THREE) / 10),
        ("3.0bit", THREE),
    ],
)
def test_bits_between_two_networks_lie_between_their_costs(network: NetworkShape, text: str, limit: float) -> None:
    found = parse_budget(text, network, 0.03)
    assert (found.text, found.limit, found.measure) == (text, limit, BOPS)


def test_fractional_bits_of_another_measure(network: NetworkShape) -> None:
    low, high = (Memory().price(network, uniform(network, bits)) for bits in (5, 6))
    assert parse_budget("5.5bit:KB", network, 0.03).limit == pytest.approx((low + high) / 2, rel=1e-15)
    with pytest.raises(BenchError, match="bits go from 1 to 8"):
        parse_budget("8.5bit:ms", network, 0.03)


def test_window_includes_both_ends() -> None:
    budget = Budget(text="100", limit=100.0, tolerance=0.03)
    assert budget.low == pytest.approx(97)
    assert budget.matches(budget.low)
    assert budget.matches(100)
    assert not budget.matches(96.9)
    assert not budget.matches(100.001)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "four",
        "4 bit",
        "-4bit",
        "4.bit",
        ".5bit",
        "630.6 M",
        "630,6M",
        "1e9",
        "395 KB",
        "395kb",
        "KB",
        "21.6s",
        "-3ms",
        "29.8MJ",
        "nan",
        "x",
        "M",
        ".5x",
    ],
)
def test_anything_else_is_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(BenchError, match="is not understood; allowed: '4bit'"):
        parse_budget(text, network, 0.03)


@pytest.mark.parametrize("text", ["0bit", "0.5bit", "32.5bit", "33bit", "999bit"])
def test_impossible_bits_are_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(BenchError, match="bits go from 1 to 32"):
        parse_budget(text, network, 0.03)


@pytest.mark.parametrize("text", ["0", "0.0x", "0M", "1.01x", "41.8G", "9" * 400])
def test_budget_outside_of_what_a_network_can_cost_is_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(
        BenchError, match="above 0 and at most what resnet20 costs at full precision, 41,798,598,656 BOPs"
    ):
        parse_budget(text, network, 0.03)
