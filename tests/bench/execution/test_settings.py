"""How a study is run, as the command line says it."""

import pytest

from bench.errors import BenchError
from bench.execution.settings import parse_backend, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30min", 1800), ("2h", 7200), ("1.5d", 129_600), (" 2 h ", 7200), ("0.5s", 0.5)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("800MB", 800_000_000), ("8GB", 8_000_000_000), ("1.5 GB", 1_500_000_000)])
def test_sizes(text: str, size: int) -> None:
    found = parse_size(text)
    assert found == size and isinstance(found, int)


@pytest.mark.parametrize(
    "text", ["", "5", "h", "0h", "-1h", "1e3s", "1,5h", "5 m", "nan s", "inf s", "٣s", "5s5s", "5S"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is not understood; give a number above 0 with a unit"):
        parse_seconds(text)


def test_a_backend_with_what_goes_with_it() -> None:
    assert parse_backend("threading", None, in_process=True, jobs=1) == "threading"
    assert parse_backend("loky", None, in_process=False, jobs=4) == "loky"
    assert parse_backend("dask", "tcp://here:1", in_process=False, jobs=4) == "dask"
    with pytest.raises(BenchError, match="unknown backend 'locky': did you mean 'loky'"):
        parse_backend("locky", None, in_process=False, jobs=1)
