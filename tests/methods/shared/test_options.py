"""Candidate bits as an option."""

from typing import Annotated

import pytest
from pydantic import ValidationError

from bench.api import Options
from methods.shared.options import RISING


class Rising(Options):
    """Options with candidates that must rise."""

    bits: Annotated[tuple[int, ...], RISING] = (2, 4, 8)


@pytest.mark.parametrize("bits", [(2, 4, 8), (1,), (3, 4)])
def test_rising_candidates_are_taken(bits: tuple[int, ...]) -> None:
    assert Rising(bits=bits).bits == bits


@pytest.mark.parametrize("bits", [(4, 2), (2, 2), (2, 8, 4)])
def test_candidates_that_do_not_rise_are_refused_by_name(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="must rise"):
        Rising(bits=bits)
