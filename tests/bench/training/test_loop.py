import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.compression.compress import compress
from bench.compression.policy import uniform
from bench.compression.quantizer import clip_parameters
from bench.compression.shapes import trace
from bench.data.subset import TensorSubset
from bench.data.task_data import TaskData
from bench.errors import NonFiniteLossError
from bench.models.resnet import resnet8
from bench.plugins.registry import load
from bench.spec.schema import Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import Meter, evaluate, evaluating, fit, rate_schedule, reestimate_norms, sgd, weight_groups

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> TaskData:
    """`synthetic` with few training images. Nothing may change it."""
    dataset = load("datasets", "synthetic")()
    return TaskData(dataset, dataset.load(None), validation_fraction=0.8, device=CPU)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    network: nn.Module = resnet8(3, 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


# --- learning rates ---


def rates(schedule: Schedule, per_epoch: int) -> list[float]:
    """The learning rate of each update, and the one after the last."""
    weight = nn.Parameter(torch.zeros(()))
    optimizer = sgd([{"params": [weight]}], schedule)
    schedulers = rate_schedule(optimizer, schedule, per_epoch)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(schedule.epochs * per_epoch):
        optimizer.step()
        schedulers.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 1), (1, 3), (4, 5), (10, 12)])
def test_cosine_falls_to_zero(epochs: int, per_epoch: int) -> None:
    found = rates(Schedule(epochs=epochs, lr=0.3, decay="cosine"), per_epoch)
    total = epochs * per_epoch
    expected = [0.15 * (1 + math.cos(math.pi * step / total)) for step in range(total + 1)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[-1] == pytest.approx(0, abs=1e-9) and found[-2] > 0


def test_steps_fall_by_ten_at_the_milestones_boundaries() -> None:
    found = rates(Schedule(epochs=6, lr=0.5, decay="step", milestones=(2, 5)), 4)
    assert found[:-1] == pytest.approx([0.5] * 8 + [0.05] * 12 + [0.005] * 4)


def test_a_longer_training_stretches_the_course_of_its_rate() -> None:
    schedule = Schedule(epochs=6, lr=0.5, decay="step", milestones=(2, 5))
    optimizer = sgd([{"params": [nn.Parameter(torch.zeros(()))]}], schedule)
    schedulers = rate_schedule(optimizer, schedule, 4, updates=36)  # one and a half times as long
    found = []
    for _ in range(36):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedulers.step()
    assert found == pytest.approx([0.5] * 12 + [0.05] * 18 + [0.005] * 6)


@pytest.mark.parametrize(("updates", "by_epoch"), [(None, [3, 3]), (6, [3, 3]), (7, [3, 3, 1]), (2, [2])])
def test_a_training_has_the_number_of_updates_asked_for(
    data: TaskData, model: nn.Module, updates: int | None, by_epoch: list[int]
) -> None:
    schedule = Schedule(epochs=2, batch_size=len(data.train) // 3, lr=0.01)
    told: list[Mapping[str, float]] = []
    before = data.drawn["training_batches"]
    fit(model, data, schedule, generator("few"), told.append, updates=updates)
    assert data.drawn["training_batches"] - before == sum(by_epoch)
    assert [(entry["epoch"], entry["epochs"]) for entry in told] == [
        (number + 1, len(by_epoch)) for number in range(len(by_epoch))
    ]


@pytest.mark.parametrize("total", [5, 8, 40, 101])
def test_one_cycle_rises_to_its_peak_and_falls_below_its_start(total: int) -> None:
    found = rates(Schedule(epochs=total, lr=0.4, decay="one_cycle"), 1)
    warmup = 0.25 * (total + 1) - 1

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    for step, rate in enumerate(found):
        if step <= warmup:
            expected = between(0.4 / 25, 0.4, step / warmup)
        else:
            expected = between(0.4, 0.4 / 25e4, (step - warmup) / (total - warmup))
        assert rate == pytest.approx(expected)
    assert max(found) == pytest.approx(0.4, rel=0.1)
    assert found[-1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_one_cycle_works_for_a_few_updates(total: int) -> None:
    found = rates(Schedule(epochs=total, lr=0.4, decay="one_cycle"), 1)
    assert len(found) == total + 1
    assert all(0 <= rate <= 0.4 for rate in found)
    assert max(found) > 0.1


@pytest.mark.parametrize("schedule", [Schedule(momentum=0.0), SearchSchedule(momentum=0.0, nesterov=True)])
def test_no_nesterov_without_momentum(schedule: Schedule | SearchSchedule) -> None:
    group = sgd([{"params": [nn.Parameter(torch.zeros(()))]}], schedule).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["lr"]) == (0.0, False, schedule.lr)


# --- the limit of gradients ---


def test_a_first_gradient_may_come_later_than_others() -> None:
    schedule = Schedule(lr=0.1, momentum=0.9, weight_decay=0.01)
    ours, plain = ([nn.Parameter(torch.full((3,), float(number))) for number in range(3)] for _ in range(2))
    optimizers = [
        sgd([{"params": ours}], schedule),
        torch.optim.SGD(plain, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ]
    for step in range(4):
        for optimizer, parameters in zip(optimizers, (ours, plain), strict=True):
            for number, parameter in enumerate(parameters):
                parameter.grad = None if step < 2 and number == 1 else torch.full((3,), number - 0.3 * step)
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


@pytest.mark.parametrize("schedule", [Schedule, SearchSchedule])
@pytest.mark.parametrize("largest", [None, 1e-3, 2.5, 13.0, 1e6])
def test_gradients_are_scaled_to_the_norm_that_they_exceed(
    schedule: type[Schedule] | type[SearchSchedule], largest: float | None
) -> None:
    starts = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    gradients = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]  # together of norm 13
    parameters = [nn.Parameter(start.clone()) for start in starts]
    settings = schedule(lr=0.5, momentum=0.0, weight_decay=0.0, max_grad_norm=largest)
    optimizer = sgd([{"params": [parameter]} for parameter in parameters], settings)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    scale = 1.0 if largest is None else min(1.0, largest / 13)
    for parameter, start, gradient in zip(parameters, starts, gradients, strict=True):
        assert torch.allclose(parameter, start - 0.5 * scale * gradient, rtol=1e-5, atol=0)


# --- groups ---


def test_clips_do_not_decay_and_every_parameter_is_trained_once(model: nn.Module) -> None:
    network = trace(model, (3, 8, 8), name="resnet8", dataset="none")
    quantized = compress(model, network, uniform(network, 4))
    groups = weight_groups(quantized)
    optimizer = sgd(groups, Schedule(weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    clips = list(clip_parameters(quantized))
    assert clips and {decay[id(p)] for p in clips} == {0.0}
    others = [p for p in quantized.parameters() if all(p is not clip for clip in clips)]
    assert {decay[id(p)] for p in others} == {0.01}
    assert len(decay) == len(list(quantized.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)


def test_excluded_parameters_are_left_to_others(model: nn.Module) -> None:
    away = [next(model.parameters())]
    (group,) = weight_groups(model, exclude=away)
    kept = {id(p) for p in group["params"]}  # type: ignore[attr-defined]
    assert kept == {id(p) for p in model.parameters()} - {id(away[0])}


# --- figures ---


def test_the_meter_is_the_mean_over_batches_and_images() -> None:
    meter = Meter(CPU)
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    meter.add(torch.tensor(1.0), logits, torch.tensor([0, 0, 0]))
    meter.add(torch.tensor(4.0), logits[:1], torch.tensor([1]))
    assert meter.figures() == {"loss": 2.5, "accuracy": 50.0}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_the_meter_refuses_a_loss_that_is_no_number(loss: float) -> None:
    meter = Meter(CPU)
    for value in (1.0, loss, 1.0):
        meter.add(torch.tensor(value), torch.zeros(2, 3), torch.tensor([0, 1]))
    said = r"the training loss became (nan|-?inf); a smaller learning rate \(lr\) or a limit of gradients"
    with pytest.raises(NonFiniteLossError, match=said):
        meter.figures()


def test_evaluation_equals_a_loop_over_images(data: TaskData, model: nn.Module) -> None:
    subset = TensorSubset(images=data.validation.images[:37], labels=data.validation.labels[:37])
    model.train()
    found = evaluate(model, data, subset)
    assert model.training  # and its statistics are untouched:
    assert all(int(m.num_batches_tracked or 0) == 0 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model.eval()
    losses, first, five = [], 0, 0
    with torch.no_grad():
        for image, label in zip(data.normalize(subset.images), subset.labels, strict=True):
            scores = model(image[None])[0]
            losses.append(float(-F.log_softmax(scores, 0)[label]))
            rank = int((scores > scores[label]).sum())
            first, five = first + (rank < 1), five + (rank < 5)
    assert found.loss == pytest.approx(sum(losses) / 37, rel=1e-5)
    assert found.top1 == pytest.approx(100 * first / 37)
    assert found.top5 == pytest.approx(100 * five / 37)
    assert 0 < found.top5 < 100


def test_top5_of_fewer_classes_is_over_all_of_them(data: TaskData) -> None:
    class Three(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3) + torch.tensor([0.0, 2.0, 1.0])

    subset = TensorSubset(images=data.test.images[:8], labels=torch.tensor([0, 0, 1, 1, 1, 2, 2, 2]))
    found = evaluate(Three(), data, subset)
    assert (found.top1, found.top5) == (37.5, 100.0)


def test_the_mode_comes_back_after_an_error(model: nn.Module) -> None:
    model.train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training


# --- training ---


def test_training_reduces_the_loss_and_reports_each_epoch(data: TaskData, model: nn.Module) -> None:
    told: list[Mapping[str, float]] = []
    fit(model, data, Schedule(epochs=4, batch_size=32, lr=0.1), generator("order", 1), told.append)
    assert [figures["epoch"] for figures in told] == [1, 2, 3, 4]
    assert all(figures["epochs"] == 4 and 0 <= figures["accuracy"] <= 100 for figures in told)
    assert told[-1]["loss"] < 0.8 * told[0]["loss"]
    assert [figures["lr"] for figures in told] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * e / 4)) / 2 for e in (1, 2, 3, 4)]
    )


def test_training_depends_on_start_and_order_alone(data: TaskData) -> None:
    def trained(order: int, noise: int) -> dict[str, Any]:
        torch.manual_seed(7)
        network = resnet8(3, 10)
        torch.manual_seed(noise)
        fit(network, data, Schedule(batch_size=32), generator("order", order), lambda _: None)
        return network.state_dict()

    first, again, other = trained(1, 1), trained(1, 2), trained(2, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_training_that_diverges_says_so(data: TaskData, model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("fc.weight").fill_(math.inf)
    with pytest.raises(NonFiniteLossError):
        fit(model, data, Schedule(batch_size=32), generator("order", 1), lambda _: None)


# --- statistics ---


def test_norms_get_the_mean_of_batch_statistics(data: TaskData, model: nn.Module) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.momentum = 0.1 + 0.01 * number
    with torch.no_grad():
        norms[0].running_mean.fill_(99.0)  # type: ignore[union-attr]
    model.eval()
    reestimate_norms(model, data, 8)
    assert not model.training
    assert [norm.momentum for norm in norms] == pytest.approx([0.1 + 0.01 * n for n in range(len(norms))])

    convolution = model.get_submodule("conv1")
    with torch.no_grad():
        outputs = [convolution(images) for images in data.calibration_batches(10, 8)]
    assert len(outputs) == 10
    means = torch.stack([out.mean(dim=(0, 2, 3)) for out in outputs]).mean(0)
    variances = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    torch.testing.assert_close(norms[0].running_mean, means)
    torch.testing.assert_close(norms[0].running_var, variances)


def test_norms_in_training_stay_in_training(data: TaskData, model: nn.Module) -> None:
    model.train()
    reestimate_norms(model, data, 8)
    assert model.training
