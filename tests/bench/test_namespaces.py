"""The names of `bench` and of `bench.api` do not get into each other's way."""

import bench
import bench.api


def test_using_one_interface_does_not_change_the_other() -> None:
    before = {name: getattr(bench, name) for name in bench.__all__}
    for name in bench.api.__all__:
        assert getattr(bench.api, name) is not None
    assert {name: getattr(bench, name) for name in bench.__all__} == before
    assert bench.price is not bench.api.price
    assert set(bench.api.__all__) <= set(dir(bench.api))
