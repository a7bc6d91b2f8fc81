"""A method with a training loop of its own, which knows nothing of how the harness watches it."""

import os
import signal
from typing import Literal

import torch
import torch.nn.functional as F

from bench.compression.policy import uniform
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.spec.options import Options


class OwnLoopOptions(Options):
    """What it does in its fifth step."""

    fifth_step: Literal["train", "raise", "interrupt", "leave", "end process"] = "train"


class OwnLoop(Method):
    """Trains the float network, and hands every layer four bits."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    Options = OwnLoopOptions
    options: OwnLoopOptions

    def search(self, job: SearchJob) -> SearchResult:
        model = job.float_model()
        optimizer = torch.optim.Adam(model.parameters())
        steps = 0
        for _ in range(job.schedule.epochs):
            for images, labels in job.task.data.training_batches(job.schedule.batch_size, job.order()):
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if steps == 5 and self.options.fifth_step == "leave":
                    return SearchResult(policy=uniform(job.task.network, 4), state=model.state_dict())
                if steps == 5:
                    self._misbehave()
        return SearchResult(policy=uniform(job.task.network, 4), state=model.state_dict())

    def _misbehave(self) -> None:
        if self.options.fifth_step == "raise":
            raise ValueError("it was\ntold to")
        if self.options.fifth_step == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if self.options.fifth_step == "end process":
            os._exit(3)
