from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.policy import uniform
from bench.costs.counter import price
from bench.matching.repair import policy_of
from bench.method import SearchJob, Task
from bench.spec.schema import SearchSchedule
from methods.dnas import Dnas
from methods.multi_path import MultiPath, MultiPathOptions
from methods.shared.networks.paths import MixedLayer

Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
MakeJob = Callable[..., SearchJob]


def mixed_layers(model: nn.Module) -> dict[str, MixedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixedLayer)}


# --- the search -------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One training step as a forward pass met it: labels are not seen, the images tell."""

    images: Tensor
    parameters: dict[str, Tensor]
    probabilities: Tensor


@dataclass
class Log:
    """All steps of a search."""

    steps: list[Step] = field(default_factory=list)
    model: nn.Module | None = None

    def watch(self, task: Task) -> Task:
        def hook(model: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self.model = model
            if torch.is_grad_enabled():
                parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
                probabilities = torch.stack([layer.probabilities.detach() for layer in mixed_layers(model).values()])
                self.steps.append(Step(inputs[0], parameters, probabilities))

        def make_model() -> nn.Module:
            model = task.make_model()
            model.register_forward_hook(hook)
            return model

        return replace(task, make_model=make_model)

    def learned(self, step: int) -> set[str]:
        """What changed in a step: "logits", "weights" or nothing."""
        before, after = self.steps[step].parameters, self.steps[step + 1].parameters
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        return {"logits" if name.endswith("logits") else "weights" for name in moved}


def fingerprints(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.contiguous()}


@pytest.fixture
def unaltered(small_task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Images arrive as they are, so that they can be told apart."""
    monkeypatch.setattr("bench.data.subset.augment", lambda images, augmentation, order: images)
    return small_task


def test_weights_and_logits_learn_in_turn_on_disjoint_images(unaltered: Task, make_job: MakeJob) -> None:
    log = Log()
    schedule = SearchSchedule(epochs=2, batch_size=18)
    job = make_job(log.watch(unaltered), schedule=schedule)
    options = MultiPathOptions(architecture_share=0.25, warmup_share=0.2)
    MultiPath(options).search(job)
    assert len(log.steps) == job.steps == 32
    of_logits, of_weights = set[bytes](), set[bytes]()
    for number in range(31):
        images = fingerprints(log.steps[number].images)
        if number >= 6 and number % 4 == 3:
            assert log.learned(number) == {"logits"}
            of_logits |= images
        else:
            assert log.learned(number) == {"weights"}
            of_weights |= images
    everything = fingerprints(job.task.data.normalize(job.task.data.train.images))
    assert not of_logits & of_weights
    assert of_logits | of_weights <= everything
    assert len(of_logits) <= 0.25 * len(everything) + 1 < len(of_weights)


def test_temperature_falls_exponentially(make_job: MakeJob) -> None:
    options = MultiPathOptions(temperature_start=4.0, temperature_end=1.0)
    job = make_job(schedule=SearchSchedule(epochs=2, batch_size=72))
    history = MultiPath(options).search(job).record["history"]
    assert [entry["temperature"] for entry in history] == pytest.approx([4 * 0.25 ** (3 / 8), 4 * 0.25 ** (7 / 8)])


@pytest.mark.parametrize("method", [MultiPath, Dnas])
def test_search_repeats_itself_to_the_last_bit(method: type[MultiPath], make_job: MakeJob) -> None:
    results = []
    options = MultiPathOptions(architecture_share=0.5, warmup_share=0.0)
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append(method(options).search(make_job(schedule=SearchSchedule(epochs=1, batch_size=48))))
    one, two = results
    assert (one.policy, list(one.decisions), one.clips, one.record) == (
        two.policy,
        list(two.decisions),
        two.clips,
        two.record,
    )
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


def test_result_fits_its_decisions_and_record(make_job: MakeJob) -> None:
    job = make_job(schedule=SearchSchedule(epochs=2, batch_size=48))
    before = {name: value.clone() for name, value in job.pretrained.items()}
    result = MultiPath(MultiPathOptions()).search(job)
    assert policy_of(result.policy, result.decisions) == result.policy
    assert result.record["history"][-1]["cost"] == price(job.task.network, result.policy).bops
    assert set(result.record["logits"]) == {shape.name for shape in job.task.network.middle}
    assert any(not torch.equal(result.state[name], before[name]) for name in before)
    assert all(torch.equal(job.pretrained[name], before[name]) for name in before)


def test_budget_is_heard_by_the_logits_alone(make_job: MakeJob) -> None:
    """A strong cost ends at the cheapest widths, none at all wherever the task leads."""
    job = make_job(match="lambda")
    options = MultiPathOptions(architecture_share=0.5, warmup_share=0.0, logit_travel=20.0)
    strong, absent = (
        MultiPath(options).search(replace(job, knobs={"strength": strength})).policy for strength in (50.0, 0.0)
    )
    assert strong == MultiPath(options).cheapest(job.task.network)
    assert price(job.task.network, absent).bops > price(job.task.network, strong).bops


# --- what it says of itself -------------------------------------------------------------------------------------


def test_cheapest_has_the_least_candidate_everywhere(small_task: Task) -> None:
    policy = MultiPath(MultiPathOptions(bits=(3, 5))).cheapest(small_task.network)
    assert policy == uniform(small_task.network, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": (4,)},
        {"bits": (0, 4)},
        {"bits": (4, 32)},
        {"bits": (8, 4, 2)},
        {"bits": (4, 4)},
        {"architecture_share": 0.0},
        {"architecture_share": 1.0},
        {"warmup_share": 1.0},
        {"temperature_end": 0.0},
        {"logit_travel": -1.0},
        {"temperature": 1.0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MultiPathOptions(**options)


def test_linear_layers_are_searched(dense_job: SearchJob) -> None:
    result = MultiPath(MultiPathOptions()).search(dense_job)
    assert [(d.layer, d.what) for d in result.decisions] == [("2", "weight_bits"), ("2", "activation_bits")]
    assert result.state["2.weight"].shape == (8, 72)
    # What it reads comes from a convolution without ReLU: the range of its input has an offset.
    assert set(result.clips) >= {"2.weight", "2.activation", "2.offset", "4.weight", "4.activation"}
    assert "4.offset" not in result.clips
