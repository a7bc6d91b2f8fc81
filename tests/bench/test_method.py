import pytest

from bench.method import Knob


def test_the_middle_of_a_knob_respects_its_scale() -> None:
    assert Knob(low=0.01, high=1, log=True).middle == pytest.approx(0.1)
    assert Knob(low=0.1, high=0.9).middle == pytest.approx(0.5)
