"""Addresses of databases and servers."""

import pytest

from bench.errors import BenchError
from bench.store.urls import with_driver, without_password


def test_addresses_get_a_driver_and_lose_their_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://u:p%40ss@host:5432/db"
    found = with_driver(uri)
    assert found.startswith("postgresql+psycopg") and "://u:p%40ss@host:5432/db?connect_timeout=" in found
    assert with_driver(found) == found
    assert without_password(found) == found.partition("?")[0].replace("p%40ss", "***")
    assert with_driver("sqlite:///x.db") == "sqlite:///x.db"
    assert without_password(uri) == "postgresql://u:***@host:5432/db"
    assert without_password("http://host:5000/a@b") == "http://host:5000/a@b"
    monkeypatch.setattr("bench.store.urls.find_spec", lambda _: None)
    with pytest.raises(BenchError, match=r"u:\*\*\*@host:5432/db needs a driver .*sbs-bench\[postgresql\]"):
        with_driver(uri)
