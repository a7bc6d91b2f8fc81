"""The checks of `bench validate` as tests of your own: a pytest class to inherit.

    import bench.testing

    class TestHalve(bench.testing.MethodContract):
        method = "halve.py:Halve"

pytest then runs one test for each check, e.g. `test_contract[interruption]`. A test is skipped if its check does not
apply to the method, and fails with the message that `bench validate` would print. This module needs pytest.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bench.diagnostics.validation.small_task import SmallTask, make_small_task
from bench.diagnostics.validation.suite import CHECKS, Check, run_check
from bench.diagnostics.validation.under_test import MethodUnderTest
from bench.errors import BenchError
from bench.plugins.method_files import with_files

__all__ = ["MethodContract"]


class MethodContract:
    """Base class of tests whether a method keeps its contract; see `docs/adding-a-method.md`.

    A subclass sets `method`, and the other attributes if their defaults do not suit. Its name must begin with `Test`.

    Attributes:
        method: Name of a registered method, or `path/to/file.py:Class`. A relative path is relative to the folder of
            the test's file, or else to the working directory.
        options: Options of the method.
        model: Name of the model to search on.
        dataset: Name of the data set to search on; a few of its images are used.
        data_dir: Folder in which the data set is looked for.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    model: ClassVar[str] = "resnet8"
    dataset: ClassVar[str] = "digits"
    data_dir: ClassVar[Path | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def under_test(cls) -> Iterator[MethodUnderTest]:
        """Provide the method after its plain search, which all checks of the class share.

        A search that fails is reported by the test of the check `search`. PyTorch's switch for deterministic
        algorithms, which searches turn on, is restored after the last test.
        """
        deterministic = torch.are_deterministic_algorithms_enabled()
        prepared = _prepare(cls)
        run_check(_SEARCH, prepared)
        yield prepared
        torch.use_deterministic_algorithms(deterministic)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_contract(self, under_test: MethodUnderTest, check: Check) -> None:
        """Make one check."""
        result = run_check(check, under_test)
        if result.verdict == "n/a":
            pytest.skip(result.found)
        if result.verdict == "FAIL":
            pytest.fail(f"{result.found} [see {result.see}]", pytrace=False)


_SEARCH = next(check for check in CHECKS if check.name == "search")


def _prepare(test: type[MethodContract]) -> MethodUnderTest:
    if not isinstance(getattr(test, "method", None), str):
        raise BenchError(f"{test.__name__} lacks `method`; set it to a name or to path/to/file.py:Class")
    named = with_files({"methods": [_beside(test)]})
    (name,) = named["methods"]
    return MethodUnderTest(
        name=name,
        small_task=_small_task(test.model, test.dataset, test.data_dir),
        options=test.options,
        location=named.get("method_files", {}).get(name),
    )


def _beside(test: type[MethodContract]) -> str:
    """Return the entry for the method; a path relative to the test's folder becomes absolute."""
    name, separator, path = test.method.rpartition("=")
    beside = Path(inspect.getfile(test)).parent / path.rpartition(":")[0]
    if beside.suffix == ".py" and beside.is_file():
        return f"{name}{separator}{beside}:{path.rpartition(':')[2]}"
    return test.method


@cache
def _small_task(model: str, dataset: str, data_dir: Path | None) -> SmallTask:
    """Make the small task once for all classes of a process."""
    return make_small_task(model, dataset, data_dir)
