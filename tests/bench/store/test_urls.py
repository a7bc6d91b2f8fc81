"""Addresses of databases and servers, and the passwords in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from bench.errors import BenchError
from bench.store.urls import command_without_secrets, with_driver, without_password, without_secrets

SECRETS = ["S3cret", "S3/cret", "S3@cret", "S3:cret", "S3?cret=x", "S3#cret", "5432/S3cret", "S3%2Fcret", "S3 cret"]


def test_addresses_get_a_driver_and_lose_their_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://u:p%40ss@host:5432/db"
    found = with_driver(uri)
    assert found.startswith("postgresql+psycopg") and "://u:p%40ss@host:5432/db?connect_timeout=" in found
    assert with_driver(found) == found
    assert without_password(found) == found.partition("?")[0].replace("p%40ss", "***")
    assert with_driver("sqlite:///x.db") == "sqlite:///x.db"
    assert without_password(uri) == "postgresql://u:***@host:5432/db"
    monkeypatch.setattr("bench.store.urls.find_spec", lambda _: None)
    with pytest.raises(BenchError, match=r"u:\*\*\*@host:5432/db needs a driver .*sbs-bench\[postgresql\]"):
        with_driver(uri)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql+pymysql"])
def test_no_form_of_a_password_is_shown(secret: str, scheme: str) -> None:
    shown = without_password(f"{scheme}://user:{secret}@host:5432/db?sslmode=require")
    assert shown == f"{scheme}://user:***@host:5432/db"
    shown = without_password(f"{scheme}://host/db?user=u&password={secret}")
    assert "cret" not in shown and shown.startswith(f"{scheme}://")


@given(
    user=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    password=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="@"), min_size=1),
    rest=st.from_regex(r"[a-z]{1,8}(:[0-9]{1,5})?/[a-z]{1,8}", fullmatch=True),
)
def test_what_sqlalchemy_takes_for_a_password_is_not_shown(user: str, password: str, rest: str) -> None:
    uri = f"postgresql://{user}:{password}@{rest}"
    read = make_url(uri)
    assert read.password is not None and read.host is not None
    assert without_password(uri) == f"postgresql://{user}:***@{rest}"


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000/a@b",
        "http://host/a:b@c",
        "sqlite:////folder/a:b@c/mlflow.db",
        "sqlite:///mlflow.db",
        "postgresql://user@host/db",
        "http://host:5000",
        "C:/folder",
        "",
    ],
)
def test_an_address_without_a_password_stays(uri: str) -> None:
    assert without_password(uri) == uri


def test_texts_and_commands_lose_every_password() -> None:
    text = "API request to http://u:S3/cret@host:5000/api?token=S3cret failed; dsn 'host=h password=S3cret dbname=d'"
    shown = without_secrets(text)
    assert "cret" not in shown and "http://u:***@host:5000/api" in shown and "dbname=d" in shown
    words = ["bench", "run", "--tracking-uri", "postgresql://u:S3 cret@h/d", "--optuna-storage=mysql://u:S3@cret@h/d"]
    stored = command_without_secrets([*words, "--name", "it's", "--set", "search.lr=0.1"])
    assert "cret" not in stored
    assert stored.endswith("--name 'it'\"'\"'s' --set search.lr=0.1")
    assert command_without_secrets(["bench", "run", "--seeds", "3"]) == "bench run --seeds 3"
