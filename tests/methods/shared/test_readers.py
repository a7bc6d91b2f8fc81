"""Which layers read the same tensor."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.compression.shapes import trace
from bench.method import SearchJob, Task
from methods.shared.readers import readers

MakeJob = Callable[..., SearchJob]


def test_the_shortcut_reads_what_the_first_convolution_of_its_block_reads(make_job: MakeJob) -> None:
    job = make_job()
    together = [group for group in readers(job) if len(group) > 1]
    assert together == [(f"stages.{stage}.0.conv1", f"stages.{stage}.0.downsample.0") for stage in (1, 2)]
    assert {name for group in readers(job) for name in group} == {layer.name for layer in job.task.network.middle}


class Readers(nn.Module):
    """Three layers read one tensor; another one reads a tensor of the same shape, made after the first was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.one, self.two, self.three = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.after, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.one(x) + self.two(x) * self.three(x)
        return self.fc(torch.relu(self.after(torch.relu(x))).mean((2, 3)))  # type: ignore[no-any-return]


def test_every_reader_of_a_tensor_is_noticed(small_task: Task, make_job: MakeJob) -> None:
    shapes = trace(Readers(), (1, 8, 8), name="readers", dataset="digits")
    job = make_job(replace(small_task, network=shapes, make_model=Readers), state=Readers().state_dict())
    assert readers(job) == [("one", "two", "three"), ("after",)]
