"""Searches, repair, compression and evaluation on a GPU, beside the same on the CPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.api import SearchJob, Task, TaskData
from bench.compression.compress import calibrate, compress
from bench.compression.policy import check
from bench.costs.budget import Budget
from bench.data.dataset import Arrays
from bench.matching.repair import repair
from bench.planning.methods import make_method
from bench.plugins import entry_points
from bench.training.loop import evaluate
from datasets.digits import Digits
from tests.bench.diagnostics.validation.test_suite import LIGHT
from tests.methods.test_devices import low_knobs

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="session")
def task_on_gpu(small_task: Task) -> Task:
    """The small task with its data on the GPU."""
    dataset = Digits()
    arrays = dataset.load(None)
    few = Arrays(
        train_images=arrays.train_images[:320],
        train_labels=arrays.train_labels[:320],
        test_images=arrays.test_images,
        test_labels=arrays.test_labels,
    )
    return replace(small_task, data=TaskData(dataset, few, validation_fraction=0.1, device=GPU))


@pytest.mark.parametrize("name", sorted(entry_points.available("methods")))
def test_a_method_ends_on_a_gpu_as_on_the_cpu(make_job: Callable[..., SearchJob], task_on_gpu: Task, name: str) -> None:
    method = make_method(name, LIGHT.get(name, {}))
    job = make_job(task_on_gpu, knobs=low_knobs(method))
    result = method.search(job)
    check(job.task.network, result.policy)
    budget = Budget(text="test", limit=job.budget, tolerance=job.tolerance)
    policy = repair(job.task.network, result.policy, result.decisions, budget).policy
    network = compress(job.float_model(), job.task.network, policy).to(GPU)
    images, _ = next(task_on_gpu.data.test.unchanged(32))
    calibrate(network, task_on_gpu.data.normalize(images))
    on_gpu = evaluate(network, task_on_gpu.data, task_on_gpu.data.test)
    on_cpu = evaluate(network.cpu(), make_job().task.data, make_job().task.data.test)
    assert on_gpu.top1 == pytest.approx(on_cpu.top1, abs=1.0)
