"""One start for all: what every search that trains begins with, and what it hands on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.compression.quantizer import Shifted
from bench.execution.stages.finetuning import compressed_network
from bench.execution.stages.search import MatchedSearch
from bench.method import Method, SearchJob, SearchResult, Task
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.spec.schema import SearchSchedule
from bench.training.loop import evaluate
from methods.bayesian_bits import BayesianBits
from methods.shared.networks.paths import MixedLayer
from methods.shared.quantizers.starts import ClipInit, best_grid, calibration_bits

MakeJob = Callable[..., SearchJob]

MARGIN = 10.0
"""Percent points that may lie between the start accuracies of two methods."""
WITHOUT_PAPER_VALUES = {"edmips", "joint_mps", "djpq"}
"""Methods whose paper states no first values for the quantizers that they have here."""


def trained_in_search() -> dict[str, type[Method]]:
    """Methods whose search trains weights: all that have a strength."""
    kinds = {name: load("methods", name) for name in available("methods")}
    return {name: kind for name, kind in kinds.items() if kind.capabilities.budget == "strength"}


TRAINED = sorted(trained_in_search())
OWN = sorted(name for name, kind in trained_in_search().items() if kind.capabilities.own_quantizer)


def search(name: str, job: SearchJob, **options: Any) -> SearchResult:
    """A search with each knob in the middle of its range."""
    kind = load("methods", name)
    method: Method = kind(kind.Options(**options))
    return method.search(replace(job, knobs={knob: range_.middle for knob, range_ in method.knobs(job.match).items()}))


# --- the option -------------------------------------------------------------------------------------------------


def test_the_option_has_one_name_and_one_default() -> None:
    fields = {name: load("methods", name).Options.model_fields.get("clip_init") for name in available("methods")}
    assert {name for name in TRAINED if fields[name] is None} == WITHOUT_PAPER_VALUES
    stated = [field for field in fields.values() if field is not None]
    assert all(field.annotation == ClipInit and field.default == "calibrated" for field in stated)


# --- start accuracies -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starts(task: Task, make_job: MakeJob) -> Mapping[str, float]:
    """Start accuracies of all methods with default options."""
    schedule = SearchSchedule(epochs=1, batch_size=256)
    return {name: search(name, make_job(task, schedule=schedule)).record["start_top1"] for name in TRAINED}


def test_all_searches_start_from_about_the_same_accuracy(
    starts: Mapping[str, float], task: Task, pretrained: Mapping[str, Tensor]
) -> None:
    assert {"sbs", "sbs_q", "sbs_p", "multi_path", "dnas", "edmips", "dq", "djpq", "bayesian_bits"} <= starts.keys()
    assert {"prune_then_quantize", "quantize_then_prune", "sbs_extended", "cost_only"} <= starts.keys()
    model = task.make_model()
    model.load_state_dict(dict(pretrained))
    reached = evaluate(model, task.data, task.data.validation).top1
    assert min(starts.values()) > reached - MARGIN > 70
    assert max(starts.values()) - min(starts.values()) < MARGIN


@pytest.mark.parametrize(("name", "cost"), [("sbs", MARGIN), ("dnas", MARGIN), ("multi_path", MARGIN), ("dq", 2.0)])
def test_the_papers_first_values_start_lower(
    starts: Mapping[str, float], name: str, cost: float, task: Task, make_job: MakeJob
) -> None:
    job = make_job(task, schedule=SearchSchedule(epochs=1, batch_size=256))
    assert search(name, job, clip_init="paper").record["start_top1"] < starts[name] - cost


def test_a_shared_range_is_calibrated_for_the_candidate_nearest_to_four_bits() -> None:
    found = [calibration_bits(bits) for bits in ((2, 4, 8), (3, 6, 12), (2, 6), (8,), (32,))]
    assert found == [4, 3, 2, 8, 32]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_best_grid_has_the_least_squared_error(bits: int, signed: bool) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    levels = 2 ** (bits - signed) - 1
    step, limit = best_grid(x, bits, signed=signed)
    assert limit == pytest.approx(levels * step)

    def error(limit: float) -> float:
        codes = (x * levels / limit).round().clamp(-levels if signed else 0, levels)
        return float((codes * limit / levels - x).square().mean())

    largest = float(x.abs().max())
    assert error(limit) <= 1.01 * min(error(largest * number / 400) for number in range(1, 401))


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_ranges_of_bayesian_bits_have_the_least_squared_error_at_four_bits(kind: str, make_job: MakeJob) -> None:
    """On the nested grid with its last gate shut, which all candidates share; `paper` takes the largest value."""
    x = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    x = x if kind == "weight" else x.abs()

    def quantizer(clip_init: ClipInit) -> Any:
        network = BayesianBits(BayesianBits.Options(clip_init=clip_init)).network(make_job())
        found = network.layers["stages.0.0.conv1"].quantizers()[0 if kind == "weight" else 1]
        found.gates = torch.tensor([1.0, 0.0])
        found.calibrate(x)
        return found

    largest = float(x.abs().max())
    assert quantizer("paper").clip.item() == pytest.approx(largest)
    calibrated = quantizer("calibrated")

    @torch.no_grad()
    def error(clip: float) -> float:
        calibrated.clip.fill_(clip)
        return float((calibrated(x) - x).square().mean())

    best = calibrated.clip.item()
    assert best < 0.9 * largest
    assert error(best) <= 1.02 * min(error(1.1 * largest * number / 200) for number in range(1, 201))


# --- what is handed on to fine-tuning with a method's own quantizers ----------------------------------------------


def quantizers_of(layer: nn.Module, name: str, policy: Any) -> dict[str, nn.Module]:
    """Quantizers of a searched layer at the bits that were chosen for it."""
    if not isinstance(layer, MixedLayer):
        return {kind: getattr(layer, f"{kind}_quantizer") for kind in ("weight", "activation")}
    choice = policy.layers[name]
    return {
        "weight": layer.weight_quantizers[layer.bits.index(choice.weight_bits)],
        "activation": layer.activation_quantizers[layer.bits.index(choice.activation_bits)],
    }


def searched_model(name: str, job: SearchJob) -> tuple[SearchResult, nn.Module]:
    """A search and the network that it trained, which replaces layers of the first model that it makes."""
    made: list[nn.Module] = []

    def noting() -> nn.Module:
        made.append(job.task.make_model())
        return made[-1]

    return search(name, replace(job, task=replace(job.task, make_model=noting))), made[0]


@pytest.mark.parametrize("signed", [False, True], ids=["resnet8", "signed inputs"])
@pytest.mark.parametrize("name", OWN)
def test_fine_tuning_with_own_quantizers_goes_on_from_what_was_learned(
    name: str, signed: bool, make_job: MakeJob, mobile_job: SearchJob
) -> None:
    source = mobile_job if signed else make_job()
    job = replace(source, schedule=SearchSchedule(epochs=1, batch_size=72, lr=0.05))
    result, searched = searched_model(name, job)
    kind = load("methods", name)
    finetune = SimpleNamespace(calibrate=False, batch_size=28)
    spec = SimpleNamespace(recipe="own", finetune=finetune, threads=torch.get_num_threads())
    unit = SimpleNamespace(seed=job.seed)
    context: Any = SimpleNamespace(spec=spec, unit=unit, task=job.task, device=torch.device("cpu"))
    matched = MatchedSearch(result=result, policy=result.policy, repaired=None, raw_cost=0.0, updates=0)
    network = compressed_network(context, kind(), matched)
    compared = set()
    for shape in job.task.network.middle:
        quantizers = quantizers_of(searched.get_submodule(shape.name), shape.name, result.policy)
        for which, quantizer in quantizers.items():
            fixed = network.get_submodule(f"{shape.name}.{which}_quantizer")
            assert isinstance(fixed, Shifted) == isinstance(quantizer, Shifted)
            learned = dict(quantizer.named_parameters())
            for parameter, value in fixed.named_parameters():
                assert torch.equal(value, learned[parameter]), f"{shape.name}.{which}_quantizer.{parameter}"
                compared.add(f"{shape.name}.{which}_quantizer.{parameter}")
    assert len(compared) >= len(job.task.network.middle)
    assert compared <= result.quantizers.keys()
