from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from bench.compression.compress import compress
from bench.compression.policy import uniform
from bench.compression.quantizer import clip_parameters
from bench.compression.shapes import NetworkShape
from bench.costs.budget import parse_budget
from bench.costs.counter import price
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from methods.fixed import Fixed, FixedOptions
from methods.full_precision import FullPrecision

MakeJob = Callable[..., SearchJob]


def cost(network: NetworkShape, bits: int) -> int:
    return price(network, uniform(network, bits)).bops


@pytest.mark.parametrize(
    ("bits", "above", "expected"),
    [(1, 0, 1), (2, 0, 2), (2, 1, 2), (2, -1, 1), (3, -1, 2), (4, 0, 4), (7, 1, 7), (16, 0, 16), (16, -1, 15)],
)
def test_the_widest_that_fits_is_taken(
    bits: int, above: int, expected: int, network: NetworkShape, make_job: MakeJob
) -> None:
    """At the cost of a width, one BOP above it and one below it."""
    job = make_job(budget=float(cost(network, bits) + above), knobs={})
    result = Fixed(FixedOptions()).search(job)
    assert result.policy == uniform(network, expected)
    assert result.record == {"bits": expected}
    assert result.decisions == ()
    assert all(result.state[name] is job.pretrained[name] for name in job.pretrained)


@pytest.mark.parametrize(("text", "bits"), [("4bit", 4), ("0.016x", 3), ("0.2x", 14), ("1x", 16)])
def test_budgets_as_they_are_written(text: str, bits: int, network: NetworkShape, make_job: MakeJob) -> None:
    job = make_job(budget=parse_budget(text, network, 0.03).limit, knobs={})
    assert Fixed().search(job).policy == uniform(network, bits)


@pytest.mark.parametrize(("options", "bits"), [({}, 1), ({"bits": 5}, 5)])
def test_what_no_width_reaches_is_refused_with_the_nearest_cost(
    options: dict[str, int], bits: int, network: NetworkShape, make_job: MakeJob
) -> None:
    method = Fixed(FixedOptions(**options))
    nearest = cost(network, bits)
    assert price(network, method.cheapest(network)).bops == nearest
    with pytest.raises(UnreachableBudgetError, match=f"uniform {bits} bit costs {nearest:,} BOPs") as caught:
        method.search(make_job(budget=nearest - 1.0, knobs={}))
    assert caught.value.nearest == nearest


def test_a_width_that_was_asked_for_is_kept(network: NetworkShape, make_job: MakeJob) -> None:
    result = Fixed(FixedOptions(bits=3)).search(make_job(knobs={}))
    assert result.policy == uniform(network, 3)


def test_fine_tuning_starts_at_clip_values_of_one_where_asked(network: NetworkShape, make_job: MakeJob) -> None:
    """They reach every quantizer of the compressed network; by default there are none, and they are calibrated."""
    job = make_job(knobs={})
    assert Fixed().search(job).clips == {}
    found = Fixed(FixedOptions(clip_init="paper")).search(job)
    model = compress(job.float_model(), network, found.policy, clips=dict.fromkeys(found.clips, 2.0))
    clips = clip_parameters(model)
    assert len(clips) == 2 * len(network.layers) - 1  # the image is not quantized
    assert all(clip.item() == 2 for clip in clips)
    assert set(found.clips.values()) == {1.0}


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 17}, {"bits": 2.5}, {"width": 4}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FixedOptions(**options)


def test_full_precision_compresses_nothing(network: NetworkShape, make_job: MakeJob) -> None:
    job = make_job(knobs={}, budget=float("inf"))
    result = FullPrecision().search(job)
    assert result.policy == uniform(network, 32)
    assert result.state is job.pretrained
    assert FullPrecision().cheapest(network) is None


@pytest.mark.parametrize("method", [Fixed(), FullPrecision()])
@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_there_is_nothing_to_tune(method: Fixed | FullPrecision, match: Any) -> None:
    assert method.knobs(match) == {}
