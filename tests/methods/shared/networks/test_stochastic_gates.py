"""Hard-concrete gates: samples, probabilities, and gates after training."""

import math

import pytest
import torch
from torch import Tensor

from methods.shared.networks.stochastic_gates import (
    FIRST_PHI,
    LAST_OPEN_PHI,
    hard_concrete,
    keep_strongest,
    probability_open,
    thresholded,
)

DRAWS = 200_000
PHIS = (-4.0, -1.6, -0.9, 0.0, 1.5, 6.0)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def quantiles() -> Tensor:
    """Uniform draws as they would be with infinite luck."""
    return (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS


@pytest.mark.parametrize("phi", PHIS)
def test_a_sample_is_the_formulas(phi: float) -> None:
    uniform_draws = [0.001, 0.2, 0.5, 0.7, 0.999]
    expected = []
    for u in uniform_draws:
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + phi) / (2 / 3)))
        expected.append(min(1.0, max(0.0, s * 1.2 - 0.1)))
    found = hard_concrete(torch.full((5,), phi, dtype=torch.float64), torch.tensor(uniform_draws, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("phi", PHIS)
def test_probability_of_an_open_gate_is_the_share_of_samples_above_zero(phi: float) -> None:
    samples = hard_concrete(torch.full((DRAWS,), phi, dtype=torch.float64), quantiles())
    assert float(probability_open(number(phi))) == pytest.approx(float((samples > 0).double().mean()), abs=2 / DRAWS)


def test_a_gate_is_open_where_less_than_34_percent_of_samples_are_zero() -> None:
    shut = {}
    for phi in (LAST_OPEN_PHI - 1e-3, LAST_OPEN_PHI + 1e-3):
        samples = hard_concrete(torch.full((DRAWS,), phi, dtype=torch.float64), quantiles())
        shut[phi] = float((samples == 0).double().mean())
        assert float(thresholded(number(phi))) == float(shut[phi] < 0.34)
    assert min(shut.values()) < 0.34 < max(shut.values())
    assert max(shut.values()) - min(shut.values()) < 1e-3
    assert thresholded(torch.tensor([-9.0, FIRST_PHI])).tolist() == [0, 1]


def test_the_strongest_group_stays() -> None:
    phi = torch.tensor([-5.0, -3.0, -4.0], requires_grad=True)
    gates = hard_concrete(phi, torch.tensor([0.9, 0.5, 0.01]))
    assert keep_strongest(torch.zeros(3), phi).tolist() == [0, 1, 0]
    kept = keep_strongest(gates, phi)
    assert kept[1] == 1
    assert torch.equal(kept[[0, 2]], gates[[0, 2]])
