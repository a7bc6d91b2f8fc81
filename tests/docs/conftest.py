"""Running commands as the tests of `bench` do."""

from tests.bench.conftest import bench

__all__ = ["bench"]
