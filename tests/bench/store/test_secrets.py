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

from bench.errors import full_traceback
from bench.execution.records import write_traceback
from bench.outputs.escaping import in_csv, in_html, in_latex, in_markdown
from bench.reporting.mlflow.server import DATABASE, Address, server_command
from bench.store.archive import archive, restore, writing
from bench.store.archive.redaction import redacted
from bench.store.files import Store, read_checked, write_checked
from bench.store.outcomes import outcome_of_error
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
        refused = output(bench(*words, BENCH_OPTUNA_STORAGE=ADDRESS))
        process = bench(*words, MLFLOW_TRACKING_URI=ADDRESS)
    else:
        refused = output(bench(*words, f"--optuna-storage={ADDRESS}"))
        process = bench(*words, "--tracking-uri", ADDRESS)
    assert b"cannot be used" in refused and b"user:***@127.0.0.1:9/db" in refused and SECRET.encode() not in refused
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


def test_an_archive_of_an_older_study_has_no_password(tmp_path: Path) -> None:
    """Of its document, the tables in its folder and what code has written; and the archive is intact."""
    fake = two_done(tmp_path / "old")
    document: dict[str, Any] = fake.document()
    folder = tmp_path / "old" / "studies" / "quick"
    write_checked(folder / "study.json", {**document, "command": f"bench run --tracking-uri {ADDRESS} --seeds 3"})
    for form in (str, in_csv, in_html, in_latex, in_markdown):
        (folder / f"{form.__name__}.md").write_text(f"The study: bench run --tracking-uri {form(ADDRESS)}, and more")
    run = tmp_path / "old" / "runs" / fake.runs[0]
    (run / "output.log").write_bytes(b"\xff cannot reach " + ADDRESS.encode() + b" now\n")
    (run / "error.txt").write_text(f"Traceback\nOperationalError: {ADDRESS}\npassword = '{SECRET}'\n")
    archive(Store(tmp_path / "old"), "quick", tmp_path / "a.tar.gz")
    assert not _secret_in(tmp_path / "a.tar.gz")
    restore(Store(tmp_path / "new"), tmp_path / "a.tar.gz")
    assert not places_of_secret(tmp_path / "new")
    new = Store(tmp_path / "new")
    assert new.load_study("quick")["command"] == Store(tmp_path / "old").load_study("quick")["command"]
    assert [new.damage("runs", run, new.record("runs", run) or {}, thorough=True) for run in fake.runs[:2]] == [
        None
    ] * 2
    log = (tmp_path / "new" / "runs" / fake.runs[0] / "output.log").read_bytes()
    assert log.startswith(b"\xff cannot reach postgresql://user:***@127.0.0.1:9/db") and log.endswith(b" now\n")


def _secret_in(file: Path) -> bool:
    return SECRET.encode() in _unpacked(file)


def test_an_archive_with_a_password_is_restored_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = two_done(tmp_path / "old")
    document: dict[str, Any] = fake.document()
    path = tmp_path / "old" / "studies" / "quick" / "study.json"
    write_checked(path, {**document, "command": f"bench run --tracking-uri {ADDRESS} --seeds 3"})
    with monkeypatch.context() as patch:
        patch.setattr(writing, "may_have_secrets", lambda _: False)
        archive(Store(tmp_path / "old"), "quick", tmp_path / "a.tar.gz")
    assert _secret_in(tmp_path / "a.tar.gz")
    restore(Store(tmp_path / "new"), tmp_path / "a.tar.gz")
    assert not places_of_secret(tmp_path / "new") and Store(tmp_path / "new").studies() == ["quick"]


def test_files_without_secrets_are_packed_as_they_are() -> None:
    for name, content in (
        ("studies/quick/study.json", b'{"command": "bench run", "a":  1}'),
        ("studies/quick/study.json", b"damaged"),
        ("studies/quick/table.md", b"| 1 |"),
        ("runs/a/output.log", b"http://host/page \xff token of 3\n"),
        ("runs/a/network.pt", ADDRESS.encode()),
    ):
        assert redacted(name, content, f"bench run --tracking-uri {ADDRESS}") == content


def test_what_code_says_is_kept_without_passwords(tmp_path: Path) -> None:
    error = RuntimeError(f"cannot connect to {ADDRESS}")
    outcome = outcome_of_error(error, tmp_path)
    assert SECRET not in outcome.reason and "user:***@127.0.0.1" in outcome.reason
    write_traceback(tmp_path, full_traceback(error))
    assert not places_of_secret(tmp_path)
