"""A small task on handwritten digits, its pretrained network, and jobs that search it in a second or two."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from bench.compression.compress import calibrate, compress, replace_layer
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.data.dataset import Arrays
from bench.data.task_data import TaskData
from bench.method import Method, SearchJob, Task
from bench.models.cct import CompactTransformer
from bench.models.resnet import resnet8, resnet20
from bench.spec.schema import Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import fit, reestimate_norms
from datasets.digits import Digits
from methods.shared.search import SearchNetwork

CPU = torch.device("cpu")


def _conv(inputs: int, outputs: int, kernel: int = 1, **others: Any) -> nn.Sequential:
    """A convolution with its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **others)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class _Gate(nn.Module):
    """Squeeze and excite, of 1×1 convolutions or of linear layers."""

    def __init__(self, channels: int, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.fc2 = kind(channels, 8), kind(8, channels)
        self.linear = isinstance(self.fc1, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(squeezed))))
        return x * (scale.view(x.shape[0], -1, 1, 1) if self.linear else scale)


class _InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, hidden: int, outputs: int, act: Callable[[Tensor], Tensor], gate: nn.Module, **others: Any
    ) -> None:
        super().__init__()
        self.expand = _conv(inputs, hidden)
        self.depthwise = _conv(hidden, hidden, groups=hidden, **others)
        self.gate, self.act = gate, act
        self.project = _conv(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depthwise(self.act(self.expand(x))))
        return self.project(self.gate(y))  # type: ignore[no-any-return]


class Mobile(nn.Module):
    """Everything that gates have to follow: depthwise convolutions, squeeze and excite of two kinds, inputs that can be
    negative, a bottleneck, and a linear layer in the middle that reads filters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 8, 3)
        self.first = _InvertedResidual(8, 16, 8, F.relu6, _Gate(16, lambda i, o: nn.Conv2d(i, o, 1)), kernel=3)
        self.second = _InvertedResidual(8, 24, 12, F.hardswish, _Gate(24, nn.Linear), kernel=5, stride=2)
        self.narrow, self.inside, self.wide = _conv(12, 8), _conv(8, 8, 3), _conv(8, 12)
        self.head = _conv(12, 16)
        self.middle, self.fc = nn.Linear(16, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = self.second(x + self.first(x))
        x = F.relu(x + self.wide(F.relu(self.inside(F.relu(self.narrow(x))))))
        x = F.hardswish(self.head(x)).mean((2, 3))
        return self.fc(F.hardswish(self.middle(x)))  # type: ignore[no-any-return]


def compact() -> CompactTransformer:
    """A transformer of four tokens: hidden units, products of activations, a linear layer of one output.

    Nothing is left out at random, so that two forms of it can be compared in training.
    """
    model = CompactTransformer(1, 10, 4)
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    return model


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mobile": Mobile,
    "resnet8": lambda: resnet8(1, 10),
    "resnet20": lambda: resnet20(1, 10),
}

Watch = Callable[[nn.Module], None]


def quiet(figures: Mapping[str, float]) -> None:
    """A report that nobody reads."""


def digits_data(count: int | None = None) -> TaskData:
    """The digits, or the first of their training images only."""
    dataset = Digits()
    arrays = dataset.load(None)
    few = Arrays(
        train_images=arrays.train_images[:count],
        train_labels=arrays.train_labels[:count],
        test_images=arrays.test_images,
        test_labels=arrays.test_labels,
    )
    return TaskData(dataset, few, validation_fraction=0.1, device=CPU)


def task_of(data: TaskData, model: str) -> Task:
    """One of the models on digits."""
    make = {**MODELS, "compact": compact}[model]
    shapes = trace(make(), data.image_shape, name=model, dataset="digits")
    return Task(data=data, network=shapes, make_model=make)


@pytest.fixture(scope="session")
def task() -> Task:
    """ResNet-8 on all digits."""
    return task_of(digits_data(), "resnet8")


@pytest.fixture(scope="session")
def small_task() -> Task:
    """ResNet-8 on 320 digits: ten batches of 28."""
    return task_of(digits_data(320), "resnet8")


@pytest.fixture(scope="session")
def network(task: Task) -> NetworkShape:
    """The shapes of ResNet-8 on digits."""
    return task.network


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def pretrained(task: Task) -> Mapping[str, Tensor]:
    """The state of a network that reads digits well."""
    torch.manual_seed(0)
    model = task.make_model()
    schedule = Schedule(epochs=4, batch_size=64, lr=0.1, decay="one_cycle")
    fit(model, task.data, schedule, generator("tests"), quiet)
    return copied(model)


def scramble(model: nn.Module, seed: int) -> nn.Module:
    """Give the norms of a model parameters and statistics that they do not start with."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2, generator=draws)
                module.bias.normal_(generator=draws)
                module.running_mean.normal_(generator=draws)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2, generator=draws)  # type: ignore[union-attr]
    return model


@pytest.fixture(scope="session", params=sorted(MODELS))
def scrambled_job(request: pytest.FixtureRequest, small_task: Task) -> SearchJob:
    """A job on a network of random weights and norms, of each kind."""
    return _scrambled(small_task, request.param)


@pytest.fixture(scope="session", params=[*sorted(MODELS), "compact"])
def pruned_job(request: pytest.FixtureRequest, small_task: Task) -> SearchJob:
    """The same, and a transformer, whose layers lose hidden units, which no norm follows."""
    return _scrambled(small_task, request.param)


@pytest.fixture(scope="session")
def compact_job(small_task: Task) -> SearchJob:
    """The transformer alone."""
    return _scrambled(small_task, "compact")


@pytest.fixture(scope="session")
def mobile_job(small_task: Task) -> SearchJob:
    """The one of them with inverted residuals."""
    return _scrambled(small_task, "mobile")


def _scrambled(small_task: Task, model: str) -> SearchJob:
    task = task_of(small_task.data, model)
    torch.manual_seed(3)
    state = scramble(task.make_model(), 3).state_dict()
    return job_of(task, state)


def job_of(task: Task, state: Mapping[str, Tensor], **changes: Any) -> SearchJob:
    """A search of one epoch at strength 0.3 for what uniform 4 bit costs."""
    job = SearchJob(
        task=task,
        pretrained=state,
        knobs={"strength": 0.3},
        budget=float(price(task.network, uniform(task.network, 4)).bops),
        match="hinge",
        schedule=SearchSchedule(epochs=1, batch_size=28),
        seed=0,
        report=quiet,
    )
    return replace(job, **changes)


@pytest.fixture(scope="session")
def make_job(small_task: Task, pretrained: Mapping[str, Tensor]) -> Callable[..., SearchJob]:
    """Builds jobs on the small task: ten updates from the pretrained network, with any field changed."""

    def make(task: Task = small_task, state: Mapping[str, Tensor] = pretrained, **changes: Any) -> SearchJob:
        return job_of(task, state, **changes)

    return make


class Dense(nn.Sequential):
    """A network with a linear layer among those that are searched."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 10))


@pytest.fixture
def dense_job(small_task: Task) -> SearchJob:
    """A job on a network with a linear layer among those that are searched."""
    shapes = trace(Dense(), (1, 8, 8), name="dense", dataset="digits")
    return job_of(replace(small_task, network=shapes, make_model=Dense), Dense().state_dict())


@pytest.fixture(scope="session")
def own_form() -> Callable[..., nn.Module]:
    """Builds the network that fine-tuning with the own recipe starts from, first and last layer as in the search."""

    def build(method: Method, network: SearchNetwork, job: SearchJob, policy: Policy) -> nn.Module:
        model = job.task.make_model()
        model.load_state_dict(network.state(policy, job.pretrained))
        compressed = compress(model, job.task.network, policy, quantizer=method.quantizer)
        assert compressed.load_state_dict(dict(network.learned(policy)), strict=False).unexpected_keys == []
        for shape in job.task.network.layers:
            if shape.position != "middle":
                replace_layer(compressed, shape.name, network.model.get_submodule(shape.name))
        return compressed.double().eval()

    return build


@pytest.fixture(scope="session")
def watched() -> Callable[[Task, Watch], Task]:
    """Adds a look at the network after every forward pass of a training step."""

    def watch_task(task: Task, watch: Watch) -> Task:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                watch(module)

        def make_model() -> nn.Module:
            model = task.make_model()
            model.register_forward_hook(hook)
            return model

        return replace(task, make_model=make_model)

    return watch_task


class Branches(nn.Module):
    """Two convolutions side by side, of which the idle one says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.idle, self.idle_norm = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.busy, self.busy_norm = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)
        for parameter in (self.idle.weight, self.idle_norm.weight):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.busy_norm(self.busy(x)) + self.idle_norm(self.idle(x)))
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


def trained(kind: type[nn.Module], task: Task, epochs: int) -> tuple[Task, nn.Module]:
    """A task with a network of another kind, and this network after a short training."""
    shapes = trace(kind(), task.data.image_shape, name=kind.__name__.lower(), dataset="digits")
    torch.manual_seed(0)
    model = kind()
    fit(model, task.data, Schedule(epochs=epochs, batch_size=64, decay="one_cycle"), generator("tests"), quiet)
    return Task(data=task.data, network=shapes, make_model=kind), model


@pytest.fixture(scope="session")
def known_best(task: Task) -> tuple[SearchJob, Policy]:
    """A job on a network of two layers whose best policy is known: the best of all that have 2 or 4 bits and cost no
    more than the busy layer at 4 and the idle one at 2 bits.
    """
    of_branches, model = trained(Branches, task, epochs=5)
    shapes, state = of_branches.network, copied(model)
    budget = price(shapes, uniform(shapes, 4).with_layer("idle", weight_bits=2, activation_bits=2)).bops
    schedule = SearchSchedule(epochs=4, batch_size=64)
    job = job_of(of_branches, state, budget=float(budget), schedule=schedule)
    found: dict[float, Policy] = {}
    for widths in product((2, 4), repeat=4):
        policy = uniform(shapes, 4)
        for name, (weight, activation) in (("idle", widths[:2]), ("busy", widths[2:])):
            policy = policy.with_layer(name, weight_bits=weight, activation_bits=activation)
        if job.price(policy) <= budget:
            found[_loss(job, policy)] = policy
    assert 1 < len(found) < 16
    return job, found[min(found)]


def _loss(job: SearchJob, policy: Policy) -> float:
    """What a policy does to the trained network, without training."""
    data = job.task.data
    network = compress(job.float_model(), job.task.network, policy)
    calibrate(network, data.calibration_batches(1, 256)[0])
    reestimate_norms(network, data, 128)
    images, labels = next(data.training_batches(1000, generator("tests")))
    with torch.no_grad():
        return F.cross_entropy(network.eval()(images), labels).item()


class Pair(nn.Module):
    """A layer of which nothing reads the last filters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.reader, self.reader_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.reader_norm(self.reader(F.relu(self.wide_norm(self.wide(x))))))
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def unread(task: Task) -> tuple[SearchJob, Policy]:
    """A job on a network of which nothing reads half the filters of a layer, and the policy without these at 4 bits."""
    of_pair, model = trained(Pair, task, epochs=3)
    shapes, state = of_pair.network, copied(model)
    state["reader.weight"][:, 4:] = 0
    half = uniform(shapes, 4).with_layer("wide", kept_filters=(0, 1, 2, 3))
    job = job_of(of_pair, state, schedule=SearchSchedule(epochs=2, batch_size=64, lr=1e-3))
    return replace(job, budget=job.price(half)), half
