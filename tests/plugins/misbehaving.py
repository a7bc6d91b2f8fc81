"""A method that ends its process in every way in which one can end; importable by name, as other packages' are."""

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
    """What it does, in which of its attempts, and where it counts them.

    Attributes:
        how: What it does.
        times: Attempts that misbehave; the later ones do not.
        place: A folder in which each attempt leaves its process's number.
    """

    how: Literal[
        "nothing", "raise", "sleep", "memory", "kill", "terminate", "exit", "diverge", "print", "child", "ignore"
    ] = "nothing"
    times: int = 99
    place: str


class Misbehaving(Method):
    """Does what it is told to, and then hands every layer four bits."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    Options = MisbehavingOptions
    options: MisbehavingOptions

    def search(self, job: SearchJob) -> SearchResult:
        attempt = len(list(Path(self.options.place).glob("attempt-*")))
        (Path(self.options.place) / f"attempt-{attempt}").write_text(str(os.getpid()))
        if attempt < self.options.times:
            self._misbehave(job)
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)

    def _misbehave(self, job: SearchJob) -> None:
        how = self.options.how
        if how == "raise":
            raise ValueError("it was told to")
        if how in ("sleep", "ignore"):
            if how == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if how == "memory":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)) * 32)
                time.sleep(0.05)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        if how == "exit":
            os._exit(3)
        if how == "diverge":
            schedule = job.schedule.model_copy(update={"lr": 1e30})
            fit(job.float_model(), job.task.data, _training(schedule), job.order(), lambda _: None)
        if how == "print":
            print("this is said in a process of its own")  # noqa: T201
            print("and this is an error", file=sys.stderr)  # noqa: T201
        if how == "child":
            child = os.fork()
            if child == 0:
                time.sleep(600)
            (Path(self.options.place) / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)


def _training(schedule: object) -> object:
    from bench.spec.schema import Schedule, SearchSchedule

    assert isinstance(schedule, SearchSchedule)
    return Schedule(epochs=1, batch_size=schedule.batch_size, lr=1e30)
