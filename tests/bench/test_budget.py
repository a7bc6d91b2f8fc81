import pytest

from bench.budget import Budget, parse_budget
from bench.costs import price
from bench.errors import BenchError
from bench.models.resnet import resnet20
from bench.network import NetworkShape, trace
from bench.policy import uniform

FULL = 41_798_598_656


@pytest.fixture(scope="module")
def network() -> NetworkShape:
    return trace(resnet20(3, 100), (3, 32, 32), name="resnet20", dataset="cifar100")


@pytest.mark.parametrize(
    ("text", "bops"),
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
def test_every_form_is_read(network: NetworkShape, text: str, bops: float) -> None:
    budget = parse_budget(text, network, 0.03)
    assert budget.bops == pytest.approx(bops, rel=1e-12)
    assert (budget.text, budget.tolerance) == (text, 0.03)


@pytest.mark.parametrize("bits", range(1, 33))
def test_uniform_policy_matches_its_own_budget(network: NetworkShape, bits: int) -> None:
    budget = parse_budget(f"{bits}bit", network, 0.0)
    assert budget.matches(price(network, uniform(network, bits)).bops)


def test_window_includes_both_ends() -> None:
    budget = Budget(text="100", bops=100.0, tolerance=0.03)
    assert budget.low == pytest.approx(97)
    assert budget.matches(budget.low)
    assert budget.matches(100)
    assert not budget.matches(96.9)
    assert not budget.matches(100.001)


@pytest.mark.parametrize(
    "text",
    ["", "four", "4 bit", "-4bit", "4.5bit", "630.6 M", "630,6M", "1e9", "395KB", "nan", "x", "M", ".5x"],
)
def test_anything_else_is_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(BenchError, match="is not understood; allowed: '4bit'"):
        parse_budget(text, network, 0.03)


@pytest.mark.parametrize("text", ["0bit", "33bit", "999bit"])
def test_impossible_bits_are_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(BenchError, match="bits go from 1 to 32"):
        parse_budget(text, network, 0.03)


@pytest.mark.parametrize("text", ["0", "0.0x", "0M", "1.01x", "41.8G", "9" * 400])
def test_budget_outside_of_what_a_network_can_cost_is_refused(network: NetworkShape, text: str) -> None:
    with pytest.raises(BenchError, match="above 0 and at most full precision's 41,798,598,656"):
        parse_budget(text, network, 0.03)
