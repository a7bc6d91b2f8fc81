import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.errors import BenchError
from bench.spec.seeds import check_report_seed, derive, generator, start_process_deterministically, tuning_seed


@pytest.fixture
def settings() -> Iterator[None]:
    """Restore PyTorch's global settings."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        (("split",), 6236696046367234471),
        (("order", "finetune", 0), 1455002848836704119),
        (("order", "finetune", 1_000_000), 2996735621498122815),
    ],
)
def test_seeds_are_the_same_on_every_machine_for_ever(parts: tuple[str | int, ...], seed: int) -> None:
    assert derive(*parts) == seed


def test_every_part_and_its_place_matter() -> None:
    seeds = [
        derive(*parts) for parts in (("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""), ("a", 1), ("a", 11), ("a", 1, 1))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive("a", 1) == derive("a", "1")


def test_generators_are_seeded_by_their_name_alone() -> None:
    torch.manual_seed(1)
    first = torch.rand(5, generator=generator("order", "search", 3))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(5, generator=generator("order", "search", 3)))
    assert not torch.equal(first, torch.rand(5, generator=generator("order", "search", 4)))


def test_tuning_seeds_and_report_seeds_never_meet() -> None:
    tuning = {tuning_seed(number) for number in range(1000)}
    assert len(tuning) == 1000
    for seed in tuning:
        with pytest.raises(BenchError, match="is not allowed; seeds go from 0 to 999999"):
            check_report_seed(seed)
    for seed in (0, 999_999):
        check_report_seed(seed)
    with pytest.raises(BenchError, match="seed -1"):
        check_report_seed(-1)


@pytest.mark.usefixtures("settings")
def test_a_process_starts_the_same_each_time() -> None:
    def draws() -> list[float]:
        start_process_deterministically(derive("search", 5), 1)
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002, S311

    first = draws()
    assert first == draws()
    assert len(set(first)) == 3
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
