"""A method that ends its process in every possible way; it is imported by name, like one of another package."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from bench.compression.policy import uniform
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.spec.options import Options
from bench.training.loop import fit


class MisbehavingOptions(Options):
    """Options of the method.

    Attributes:
        behaviour: Behaviour of the search.
        times: Number of attempts that misbehave; later ones do not.
        folder: Folder in which each attempt leaves the number of its process.
    """

    behaviour: Literal[
        "nothing", "raise", "sleep", "memory", "kill", "terminate", "exit", "diverge", "print", "child", "ignore"
    ] = "nothing"
    times: int = 99
    folder: str


class Misbehaving(Method):
    """Misbehaves as its options say, and gives every layer four bits."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    Options = MisbehavingOptions
    options: MisbehavingOptions

    def search(self, job: SearchJob) -> SearchResult:
        attempt = len(list(Path(self.options.folder).glob("attempt-*")))
        (Path(self.options.folder) / f"attempt-{attempt}").write_text(str(os.getpid()))
        if attempt < self.options.times:
            self._misbehave(job)
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)

    def _misbehave(self, job: SearchJob) -> None:
        behaviour = self.options.behaviour
        if behaviour == "raise":
            raise ValueError("it was told to")
        if behaviour in ("sleep", "ignore"):
            if behaviour == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if behaviour == "memory":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)) * 32)
                time.sleep(0.05)
        if behaviour == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        if behaviour == "exit":
            os._exit(3)
        if behaviour == "diverge":
            schedule = job.schedule.model_copy(update={"lr": 1e30})
            fit(job.float_model(), job.task.data, _training(schedule), job.order(), lambda _: None)
        if behaviour == "print":
            print("this is said in a process of its own")  # noqa: T201
            print("and this is an error", file=sys.stderr)  # noqa: T201
        if behaviour == "child":
            child = os.fork()
            if child == 0:
                time.sleep(600)
            (Path(self.options.folder) / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)


def _training(schedule: object) -> object:
    from bench.spec.schema import Schedule, SearchSchedule

    assert isinstance(schedule, SearchSchedule)
    return Schedule(epochs=1, batch_size=schedule.batch_size, lr=1e30)
