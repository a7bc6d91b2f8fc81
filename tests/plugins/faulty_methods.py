"""A method that keeps the contract, and others that break one rule of it each; importable by name, as a user's are.

The name of each is that of the check which must find it, and what it does.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import nn

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.errors import UnreachableBudgetError
from bench.matching.repair import policy_of
from bench.method import Capabilities, Decision, Knob, Method, SearchJob, SearchResult
from bench.spec.options import Options
from bench.spec.schema import Match
from bench.spec.seeds import generator
from bench.training.checkpoints import Stateful
from bench.training.loop import evaluate, sgd, weight_groups
from methods.shared.decisions import bits_decision

WIDTHS = (2, 4, 8)


class SoundOptions(Options):
    """An option for the checks of options."""

    slack: float = 0.0


class Sound(Method):
    """Trains a little; widths follow from the strength."""

    summary = "for tests: keeps the contract"
    source = "these tests"
    capabilities = Capabilities(budget="strength", mixed_precision=True)
    Options: Any = SoundOptions

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        return {"strength": Knob(low=0.5, high=8.0, log=True)}

    def cheapest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, min(WIDTHS))

    def costliest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, max(WIDTHS))

    def search(self, job: SearchJob) -> SearchResult:
        model = self.trained(job)
        decisions = self.decisions(job)
        policy = policy_of(uniform(job.task.network, 8), decisions)
        found = SearchResult(policy=policy, state=model.state_dict(), decisions=decisions, record={"slack": 0.0})
        return self.changed(job, found)

    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        return result

    def trained(self, job: SearchJob) -> nn.Module:
        model = job.float_model()
        optimizer = sgd(weight_groups(model), job.schedule)
        for _, batches in job.epochs(self.parts(model, optimizer)):
            for images, labels in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
        return model

    def parts(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful]:
        return {"model": model, "optimizer": optimizer}

    def target(self, strength: float) -> float:
        return 8 / strength

    def decisions(self, job: SearchJob) -> list[Decision]:
        target = self.target(job.knobs.get("strength", 1.0))
        return [
            bits_decision(layer.name, what, WIDTHS, [-abs(width - target * (1 + number % 2)) for width in WIDTHS])
            for number, layer in enumerate(job.task.network.middle)
            for what in ("weight_bits", "activation_bits")
        ]


# --- what a method says of itself ---


class SummaryWithoutSource(Sound):
    source = ""


class SummaryWithDeviationsAsText(Sound):
    deviations: Any = "It differs."


class _Loose(BaseModel):
    slack: float = 0.0


class OptionsNotStrict(Sound):
    Options = _Loose


class _Untyped(Options):
    slack: Any = 0.0


class OptionsWithoutTypes(Sound):
    Options = _Untyped


class KnobsUpsideDown(Sound):
    def knobs(self, match: Match) -> Mapping[str, Knob]:
        return {**super().knobs(match), "other": Knob(low=2.0, high=1.0)}


class CapabilitiesNotMixed(Sound):
    capabilities = Capabilities(budget="strength")


class CapabilitiesWithoutPruning(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        layer = next((layer for layer in job.task.network.layers if layer.prunable and layer.parts == 1), None)
        if layer is None:
            return result
        pruned = result.policy.with_layer(layer.name, kept_filters=tuple(range(layer.out_channels - 1)))
        return replace(result, policy=pruned, decisions=())

    def cheapest(self, network: NetworkShape) -> Policy | None:
        return None


class CapabilitiesWithAnotherQuantizer(Sound):
    capabilities = Capabilities(budget="strength", mixed_precision=True, own_quantizer=True)


# --- results ---


class SearchReturnsNothing(Sound):
    def search(self, job: SearchJob) -> Any:
        self.trained(job)


class SearchRaises(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        raise ValueError("it was\ntold to")


class PolicyOfFloats(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        name = job.task.network.middle[0].name
        bits: Any = float(result.policy.layers[name].weight_bits)
        return (
            result
            if job.match == "lambda"
            else replace(result, policy=result.policy.with_layer(name, weight_bits=bits))
        )


class PolicyForgetsALayer(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        layers = dict(result.policy.layers)
        layers.popitem()
        return replace(result, policy=replace(result.policy, layers=layers), decisions=())


class DecisionsOtherThanThePolicy(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        name = job.task.network.middle[0].name
        return replace(result, policy=result.policy.with_layer(name, weight_bits=3))


class NetworkWithoutAllWeights(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        return replace(result, state=dict(list(result.state.items())[1:]))


class RecordWithATensor(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        return replace(result, record={"loss": torch.zeros(())})


# --- conduct ---


def shifted(result: SearchResult, draws: torch.Generator | None) -> SearchResult:
    """The result with noise on a weight."""
    name = next(iter(result.state))
    noise = torch.rand(result.state[name].shape, generator=draws)
    return replace(result, state={**result.state, name: result.state[name] + noise})


class RepeatsNever(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        return shifted(result, torch.Generator().manual_seed(time.perf_counter_ns()))


class GlobalGeneratorsAreDrawnFrom(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        return shifted(result, None)


class NameIsASeed(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        return shifted(super().search(job), generator(type(self).__name__, job.seed))


class TestSplitIsRead(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        evaluate(job.float_model(), job.task.data, job.task.data.test)
        return super().search(job)


class InputsPretrainedIsTrained(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        result = super().search(job)
        for value in job.pretrained.values():
            value.add_(1)
        return result


class InputsImagesAreChanged(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        result = super().search(job)
        images = getattr(job.task.data.validation, "images")  # noqa: B009
        images[0, 0, 0, 0] += 1
        return result


class AllowanceIsExceeded(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        list(job.task.data.training_batches(job.schedule.batch_size, job.order("more")))
        return result


class InterruptionLosesTheOptimizer(Sound):
    def parts(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful]:
        return {"model": model}


class InterruptionIsCaught(Sound):
    def search(self, job: SearchJob) -> SearchResult:
        try:
            return super().search(job)
        except BaseException:
            return SearchResult(policy=uniform(job.task.network, 2), state=job.pretrained)


class MemoryIsKept(Sound):
    kept: list[nn.Module] = []  # noqa: RUF012

    def trained(self, job: SearchJob) -> nn.Module:
        self.kept.append(super().trained(job))
        return self.kept[-1]


class MemoryOfObjects(Sound):
    kept: list[Any] = []  # noqa: RUF012

    def trained(self, job: SearchJob) -> nn.Module:
        self.kept.append([[number] for number in range(3000)])
        return super().trained(job)


class Replacing(Sound):
    """Keeps the contract: what it holds on to is replaced by every search."""

    last: list[nn.Module] = []  # noqa: RUF012

    def trained(self, job: SearchJob) -> nn.Module:
        self.last[:] = [super().trained(job)]
        return self.last[0]


# --- budgets ---


class Direct(Sound):
    """Keeps the contract of those that are handed the budget."""

    capabilities = Capabilities(budget="direct", mixed_precision=True)

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        return {}

    def search(self, job: SearchJob) -> SearchResult:
        fits = [policy for width in WIDTHS if job.price(policy := uniform(job.task.network, width)) <= job.budget]
        return self.answer(job, fits)

    def answer(self, job: SearchJob, fits: list[Policy]) -> SearchResult:
        if not fits:
            raise self.refusal(job.price(uniform(job.task.network, min(WIDTHS))))
        return SearchResult(policy=fits[-1], state=job.pretrained)

    def refusal(self, nearest: float) -> Exception:
        return UnreachableBudgetError("two bits cost more", nearest)


class BudgetIsExceeded(Direct):
    def answer(self, job: SearchJob, fits: list[Policy]) -> SearchResult:
        return super().answer(job, [uniform(job.task.network, 8)] if len(fits) > 1 else fits)


class ImpossibleBudgetIsAnError(Direct):
    def refusal(self, nearest: float) -> Exception:
        return ZeroDivisionError("float division by zero")


class ImpossibleBudgetNamesAnotherCost(Direct):
    def refusal(self, nearest: float) -> Exception:
        return UnreachableBudgetError("two bits cost more", 1.5 * nearest)


class ImpossibleBudgetIsIgnored(Direct):
    def answer(self, job: SearchJob, fits: list[Policy]) -> SearchResult:
        return super().answer(job, fits or [uniform(job.task.network, min(WIDTHS))])


class ImpossibleBudgetNeverEnds(Direct):
    def answer(self, job: SearchJob, fits: list[Policy]) -> SearchResult:
        while not fits:
            time.sleep(0.01)
        return super().answer(job, fits)


class CheapestIsTooDear(Sound):
    def cheapest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, 4)


class CheapestIsOutOfReach(Sound):
    def cheapest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, 1)


class CheapestIsNoPolicy(Direct):
    def cheapest(self, network: NetworkShape) -> Policy | None:
        policy = super().cheapest(network)
        assert policy is not None
        return policy.with_layer(network.layers[-1].name, kept_filters=(0,))


class CostliestIsTooCheap(Sound):
    def costliest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, 4)


class CostliestIsNoPolicy(Direct):
    def costliest(self, network: NetworkShape) -> Policy | None:
        return uniform(network, 8).with_layer(network.layers[-1].name, kept_filters=(0,))


class ExtremesDiverge(Sound):
    def changed(self, job: SearchJob, result: SearchResult) -> SearchResult:
        name = next(iter(result.state))
        far = job.knobs["strength"] > 7
        return replace(result, state={**result.state, name: result.state[name] * torch.nan}) if far else result


class StrengthWorksBackwards(Sound):
    def target(self, strength: float) -> float:
        return strength


class OtherLayersReadEverywhere(Sound):
    """It reads the weights of every searched layer, and products of activations have none."""

    def decisions(self, job: SearchJob) -> list[Decision]:
        model = job.float_model()
        assert all(model.get_submodule(layer.name).weight.isfinite().all() for layer in job.task.network.middle)
        return super().decisions(job)


class OtherLayersEmptied(Sound):
    """At a high strength, it drops every group of a layer that feeds a depthwise convolution."""

    capabilities = Capabilities(budget="strength", mixed_precision=True, prunes=True)

    def cheapest(self, network: NetworkShape) -> Policy | None:
        return None

    def decisions(self, job: SearchJob) -> list[Decision]:
        layers = job.task.network.layers
        leaders = {layer.leader for layer in layers if layer.depthwise} - {None}
        kept = int(job.knobs.get("strength", 1.0) < 7)
        groups = [
            Decision(
                layer=layer.name,
                what="filters",
                options=(0, 1),
                chosen=kept,
                margins=(kept - 0.5,),
                filters=tuple(range(first, first + 4)),
            )
            for layer in layers
            if layer.name in leaders
            for first in range(0, layer.out_channels, 4)
        ]
        return [*super().decisions(job), *groups]

    def search(self, job: SearchJob) -> SearchResult:
        model, decisions = self.trained(job), self.decisions(job)
        base = uniform(job.task.network, 8)
        for decision in decisions:
            if decision.what == "filters":
                base = base.with_layer(
                    decision.layer, kept_filters=tuple(range(job.task.network[decision.layer].out_channels))
                )
        return SearchResult(policy=policy_of(base, decisions), state=model.state_dict(), decisions=decisions)


def faulty() -> Iterator[tuple[str, type[Sound]]]:
    """Every method with a fault, by the name of the check that its class begins with."""
    for name, kind in globals().items():
        if isinstance(kind, type) and issubclass(kind, Sound) and kind not in (Sound, Replacing, Direct):
            yield name, kind


__all__ = ["Direct", "Replacing", "Sound", "faulty"]
