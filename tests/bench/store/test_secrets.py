"""A password in the address of a database stands nowhere that others can read."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.reporting.mlflow.server import DATABASE, Address, server_command
from bench.store.files import Store, read_checked, write_checked
from tests.bench.cli.specification import toml
from tests.fake_store import two_done

SECRET = "S3cret"  # noqa: S105
ADDRESS = f"postgresql://user:a/{SECRET}@127.0.0.1:9/db?sslpassword={SECRET}"
"""A database that does not answer."""


def bench(*arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def output(process: "subprocess.Popen[bytes]") -> bytes:
    out, _ = process.communicate(timeout=500)
    return out


def places_of_secret(folder: Path) -> list[Path]:
    """The files in which the secret stands, packed or not."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in _unpacked(path)]


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def commands_with_secret(process: psutil.Process) -> Iterator[str]:
    """Yield every command that the process list shows for the descendants of a process, if the secret stands in it."""
    for child in process.children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if SECRET in command:
            yield command


@pytest.mark.slow
@pytest.mark.parametrize("given", ["in the environment", "on the command line"])
def test_a_planted_secret_is_in_no_file_no_line_and_no_process(
    given: str, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg2")
    (tmp_path / "tiny.toml").write_text(toml({**tiny.values, "methods": ["fixed"], "seeds": [0]}))
    store, words = str(tmp_path / "store"), ["run", "--spec", str(tmp_path / "tiny.toml")]
    words += ["--store", str(tmp_path / "store"), "--data-dir", str(tmp_path)]
    if given == "in the environment":
        process = bench(*words, MLFLOW_TRACKING_URI=ADDRESS, BENCH_OPTUNA_STORAGE=ADDRESS)
    else:
        process = bench(*words, "--tracking-uri", ADDRESS, f"--optuna-storage={ADDRESS}")
    seen: list[str] = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        seen += commands_with_secret(watched)
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    printed = output(process)
    assert process.returncode == 0, printed.decode()
    assert b"MLflow at postgresql" in printed and b"user:***@127.0.0.1:9/db" in printed
    name = str(tiny.values["name"])
    printed += output(bench("report", name, "--store", store, "--out", str(tmp_path / "pages")))
    printed += output(bench("archive", name, str(tmp_path / "a.tar.gz"), "--store", store))
    printed += output(bench("status", name, "--store", store))
    printed += output(bench("sync", name, "--store", store, MLFLOW_TRACKING_URI=ADDRESS))
    printed += output(bench("ui", name, "--store", store, MLFLOW_TRACKING_URI=ADDRESS))
    assert (tmp_path / "a.tar.gz").is_file() and list((tmp_path / "pages").glob("*.html"))
    assert SECRET.encode() not in printed
    assert not seen and not places_of_secret(tmp_path)


def test_the_command_of_the_server_has_no_database(tmp_path: Path) -> None:
    assert DATABASE == "MLFLOW_BACKEND_STORE_URI"
    assert not [
        word
        for word in server_command(tmp_path, Address(host="127.0.0.1", port=5000))
        if "backend" in word or "sql" in word
    ]


def test_the_command_of_an_older_study_is_shown_without_its_password(tmp_path: Path) -> None:
    fake = two_done(tmp_path)
    document: dict[str, Any] = fake.document()
    path = tmp_path / "studies" / "quick" / "study.json"
    write_checked(path, {**document, "command": f"bench run --tracking-uri {ADDRESS} --seeds 3"})
    assert SECRET in str(read_checked(path))
    shown = Store(tmp_path).load_study("quick")["command"]
    assert SECRET not in shown and shown.startswith("bench run --tracking-uri postgresql://user:***@127.0.0.1:9/db")
