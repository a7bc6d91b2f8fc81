"""The contract as tests that authors inherit: on a method that keeps it, and on methods that break it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench.testing
from bench.diagnostics.validation.suite import CHECKS
from bench.errors import BenchError
from tests.plugins import faulty_methods

FAULTY = Path(faulty_methods.__file__)
CHECKOUT = Path(__file__).parents[2]


class TestFixed(bench.testing.MethodContract):
    """A method of ours that is registered."""

    method = "fixed"
    options = {"bits": 3}  # noqa: RUF012


def run(folder: Path, test: str) -> tuple[str, dict[str, int]]:
    """The output of pytest on a file with a test, and how many tests had which outcome."""
    (folder / "test_mine.py").write_text(f"import bench.testing\n\n\n{test}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    result = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    last = result.stdout.strip().splitlines()[-1]
    return result.stdout, {outcome: int(count) for count, outcome in re.findall(r"(\d+) (\w+)", last) if count}


@pytest.mark.slow
def test_the_broken_rule_is_the_one_that_fails(tmp_path: Path) -> None:
    """The method lies beside the test, and is named relative to it."""
    (tmp_path / "mine.py").write_text(FAULTY.read_text())
    out, counts = run(
        tmp_path, 'class TestMine(bench.testing.MethodContract):\n    method = "mine.py:CapabilitiesNotMixed"\n'
    )
    assert (counts["failed"], sum(counts[outcome] for outcome in ("failed", "passed"))) == (1, len(CHECKS)), out
    assert "test_contract[capabilities]" in out
    assert "mixed_precision=False, but the plain search gave layers different bits" in out
    assert "[see docs/adding-a-method.md, 'Capabilities']" in out


@pytest.mark.slow
def test_a_search_that_fails_is_reported_once(tmp_path: Path) -> None:
    out, counts = run(
        tmp_path, f'class TestMine(bench.testing.MethodContract):\n    method = "mine={FAULTY}:SearchRaises"\n'
    )
    assert counts["failed"] == 1, out
    assert "ValueError: it was told to" in out and counts["skipped"] > counts["passed"]


def test_a_class_without_a_method_says_what_is_missing() -> None:
    class TestNothing(bench.testing.MethodContract):
        pass

    with pytest.raises(BenchError, match=r"TestNothing lacks `method`; set it to a name or to path/to/file\.py:Class"):
        bench.testing._prepare(TestNothing)
