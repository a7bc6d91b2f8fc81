"""Ten thousand mutations of a file for each of its readers; a few hundred are in `tests/bench/store`."""

import os
from pathlib import Path

import pytest

from tests.faults.reading import READERS, Reader, attack

MUTATIONS = int(os.environ.get("BENCH_MUTATIONS", "10000"))
"""Mutations for each reader; a tenth of it for readers that make reports or restore archives."""


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_mutated_files(reader: Reader, tmp_path: Path) -> None:
    slow = reader.name == "archive" or reader.name.startswith("reports")
    refused = attack(reader, tmp_path, MUTATIONS // 10 if slow else MUTATIONS, seed=1)
    assert refused or reader.name not in (
        "policy",
        "state",
        "archive",
        "study",
        "packed network",
        "packed transformer",
        "onnx network",
    )
