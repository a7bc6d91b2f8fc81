"""What `bench speed` measures: the settings of a measurement, and the trainings that take part."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from bench.method import Method
from bench.spec.schema import Precision
from bench.store.machine import hardware, versions

WARM_UP = 3
"""Steps that are not timed, at the beginning of each stage."""

What = Literal["training", "search", "fine-tuning"]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Settings of a measurement.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set; only its image shape and its number of classes count.
        batch_size: Images per step.
        rounds: Number of timed steps of each training.
        threads: CPU threads.
        device: Device of the trainings.
        precision: Precision of all trainings but the reference.
        memory: Whether peak memory is measured. On a CPU this takes one process per row.
    """

    model: str = "resnet20"
    dataset: str = "cifar100"
    batch_size: int = 128
    rounds: int = 10
    threads: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    memory: bool = True


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A training to measure.

    Attributes:
        name: Name in the table.
        what: Stage of a study.
        method: Method whose search is measured, or whose quantizer is used in fine-tuning. `None` for training of the
            float network and for the common quantizer.
        compiled: Whether the network is compiled.
        precision: Precision of the forward passes.
        detail: Distinction from other candidates with the same name.
    """

    name: str
    what: What
    method: Method | None = None
    compiled: bool = False
    precision: Precision = "fp32"
    detail: str = ""

    @property
    def title(self) -> str:
        """Name for messages."""
        parts = [self.what, self.name, self.detail, "compiled" if self.compiled else ""]
        return " ".join(part for part in parts if part)


REFERENCE = Candidate(name="float", what="training")
"""Training of the float network in single precision, not compiled: all others are compared with it."""


def head(config: SpeedConfig) -> dict[str, Any]:
    """Describe a measurement's settings, hardware and versions as JSON."""
    return {
        **asdict(config),
        "device": str(config.device),
        "warm_up": WARM_UP,
        "hardware": hardware(config.device),
        "versions": versions(),
    }
