"""SBS with options beyond the paper: whole searches."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bench.errors import BenchError
from bench.method import SearchJob
from bench.planning.methods import make_method
from methods.sbs import Sbs, SbsOptions, SbsQ
from methods.sbs_extended import ExtendedSearch, SbsExtended, SbsExtendedOptions

MakeJob = Callable[..., SearchJob]


class QuantizationExtended(SbsExtended, SbsQ):
    """Quantization only."""


def test_a_search_that_starts_shut_opens_gates(make_job: MakeJob) -> None:
    job = make_job(budget=1e12)  # the cost never acts
    found = QuantizationExtended(SbsExtendedOptions(gate_start="shut")).search(job)
    per_step = found.record["cost_per_step"]
    assert per_step[0] == job.price(QuantizationExtended().cheapest(job.task.network))
    assert per_step[0] < per_step[-1]


def test_a_falling_rate_goes_the_same_way(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the rate at the start, none at the end; the same for all thresholds."""
    seen: list[float] = []
    searches: list[ExtendedSearch] = []
    set_rate = ExtendedSearch.set_threshold_rate

    def recorded(search: ExtendedSearch, rate: float) -> None:
        set_rate(search, rate)
        seen.append(rate)
        searches.append(search)

    monkeypatch.setattr(ExtendedSearch, "set_threshold_rate", recorded)
    job = make_job()
    SbsExtended(SbsExtendedOptions(threshold_decay="linear")).search(job)
    rate = SbsOptions().threshold_rate(job.steps)
    assert len(seen) == job.steps
    assert seen[0] == 2 * rate
    assert sum(seen) / len(seen) == pytest.approx(rate * (1 + 1 / job.steps))
    assert [a - b for a, b in pairwise(seen)] == pytest.approx([2 * rate / job.steps] * 9)
    optimizers = (searches[-1].sgd_alpha_w, searches[-1].sgd_alpha_x)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [seen[-1]] * 2


def test_without_its_options_it_is_sbs(make_job: MakeJob) -> None:
    plain, extended = Sbs().search(make_job()), SbsExtended().search(make_job())
    assert (plain.policy, plain.clips, plain.record) == (extended.policy, extended.clips, extended.record)
    assert list(plain.decisions) == list(extended.decisions)
    assert all(torch.equal(plain.state[name], extended.state[name]) for name in plain.state)


@pytest.mark.parametrize("method", ["sbs", "sbs_q", "prune_then_quantize"])
@pytest.mark.parametrize("option", sorted(SbsExtendedOptions.model_fields.keys() - SbsOptions.model_fields.keys()))
def test_sbs_says_where_an_option_beyond_the_paper_is(method: str, option: str) -> None:
    with pytest.raises(BenchError) as caught:
        make_method(method, {option: 0.3})
    assert str(caught.value) == (
        f"'options.{method}' has no option '{option}': it belongs to the method sbs_extended; add sbs_extended to the "
        f"methods, and set the option with --set options.sbs_extended.{option}=…"
    )
    with pytest.raises(BenchError, match="unknown"):
        make_method(method, {f"{option}s": 0.3})


def test_layers_without_a_choice_have_nothing_to_scale(make_job: MakeJob) -> None:
    """Shortcuts at a fixed width among layers with gates."""
    everything: dict[str, Any] = {"gate_start": "shut", "clip_sharing": "per_width"}
    for scale in ("start", "hessian"):
        options = SbsExtendedOptions(search_downsampling=False, metric_scale=scale, **everything)  # type: ignore[arg-type]
        found = QuantizationExtended(options).search(make_job())
        assert {found.policy.layers[s.name].weight_bits for s in make_job().task.network.middle if s.shortcut} == {8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_probes": 1.0}, "gate_probes"),
        ({"gate_start": "half"}, "gate_start"),
        ({"clip_sharing": "two"}, "clip_sharing"),
        ({"metric_scale": "paper"}, "metric_scale"),
        ({"threshold_decay": "cosine"}, "threshold_decay"),
        ({"bits": (2, 5)}, "5 is not a multiple of 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SbsExtendedOptions(**options)
