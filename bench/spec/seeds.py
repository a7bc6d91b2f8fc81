"""Seeds, derived from names and numbers and never from the method, so that runs with the same seed are pairs."""

import hashlib
import os
import random

import numpy as np
import torch

from bench.errors import BenchError
from bench.spec.schema import REPORT_SEEDS


def derive(*parts: str | int) -> int:
    """Derive a seed of 63 bits from a sequence of names and numbers; it is the same on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive`: draws on the CPU do not depend on the device."""
    return torch.Generator().manual_seed(derive(*parts))


def tuning_seed(number: int) -> int:
    """Return the seed of tuning searches, by its number 0, 1, …; it is disjoint from every report seed."""
    return REPORT_SEEDS + number


def check_report_seed(seed: int) -> None:
    """Check that a report seed does not lie in the range of tuning seeds.

    Raises:
        BenchError: The seed is negative or too large.
    """
    if not 0 <= seed < REPORT_SEEDS:
        raise BenchError(f"seed {seed} is not allowed; seeds go from 0 to {REPORT_SEEDS - 1}, e.g. --seeds 0,1,2")


def start_process_deterministically(seed: int, threads: int) -> None:
    """Seed every global generator and make PyTorch deterministic. Call it before anything random happens."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that still use the global generator)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor is meant for debugging, and costs a sixth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
