import hashlib
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from bench.errors import BenchError
from datasets.shared.files import PublishedFiles, data_folder, layout_check, locate, md5_check

CONTENTS = {"one": b"first file", "two": b"second file"}
ARCHIVE = b"both files, packed"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _write_all(folder: Path, *, names: tuple[str, ...] = ("one", "two")) -> None:
    (folder / "things").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "things" / name).write_bytes(CONTENTS[name])


def _never(folder: Path) -> None:
    pytest.fail(f"downloaded into {folder}")


def _source(download: Callable[[Path], object] = _never) -> PublishedFiles:
    return PublishedFiles(
        name="things",
        folder="things",
        files={name: md5_check(_md5(content)) for name, content in CONTENTS.items()},
        archives={"things.tar": _md5(ARCHIVE)},
        download=download,
    )


def _failing(error: Exception) -> PublishedFiles:
    def download(folder: Path) -> None:
        # What a broken connection leaves behind.
        _write_all(folder, names=("one",))
        (folder / "things.tar").write_bytes(ARCHIVE[:5])
        raise error

    return _source(download)


def _refusal(source: PublishedFiles, root: Path) -> str:
    with pytest.raises(BenchError) as caught:
        locate(source, root)
    message = str(caught.value)
    assert "\n" not in message
    assert "--data-dir DIR" in message
    return message


def _listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# --- where ---


def test_a_given_folder_is_taken_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_folder(Path("here")) == tmp_path / "here"


def test_a_tilde_means_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder(Path("~/data")) == tmp_path / "data"


@pytest.mark.parametrize("setting", [None, "", "relative/cache"])
def test_the_default_lies_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if setting is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
    assert data_folder(None) == tmp_path / ".cache" / "sbs-bench"


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder(None) == tmp_path / "sbs-bench"


# --- files that are there ---


def test_good_files_are_used_without_a_download_or_a_write(tmp_path: Path) -> None:
    _write_all(tmp_path)
    before = _listing(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path, tmp_path / "things")}
    for path in (tmp_path / "things", tmp_path):
        path.chmod(0o555)
    try:
        assert locate(_source(), tmp_path) == tmp_path
    finally:
        for path in (tmp_path, tmp_path / "things"):
            path.chmod(0o755)
    assert _listing(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("content", [b"second fils", b"second", b""], ids=["changed", "truncated", "empty"])
def test_a_corrupt_file_is_named_with_both_checksums_and_kept(tmp_path: Path, content: bytes) -> None:
    _write_all(tmp_path)
    (tmp_path / "things" / "two").write_bytes(content)
    message = _refusal(_source(), tmp_path)
    assert f"{tmp_path / 'things' / 'two'} of data set 'things' is corrupt" in message
    assert f"expected md5 {_md5(CONTENTS['two'])}, found {_md5(content)}" in message
    assert "delete it to download it again" in message
    assert (tmp_path / "things" / "two").read_bytes() == content


def test_a_corrupt_file_is_reported_before_a_missing_one_is_downloaded(tmp_path: Path) -> None:
    _write_all(tmp_path, names=("two",))
    (tmp_path / "things" / "two").write_bytes(b"?")
    assert "is corrupt" in _refusal(_source(), tmp_path)


def test_an_unreadable_file_is_one_clear_line(tmp_path: Path) -> None:
    def refuse(path: Path) -> str | None:
        raise PermissionError(13, "Permission denied", str(path))

    _write_all(tmp_path)
    source = replace(_source(), files={"one": refuse})
    message = _refusal(source, tmp_path)
    assert f"cannot read data set 'things' in {tmp_path / 'things'}: Permission denied" in message


def test_layout_check_compares_size_and_header(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check = layout_check(b"\x08\x01", 4)
    path.write_bytes(b"\x08\x01ab")
    assert check(path) is None
    path.write_bytes(b"\x08\x01a")
    assert check(path) == "expected 4 bytes, found 3"
    path.write_bytes(b"\x08\x03ab")
    assert check(path) == "expected the header 0801, found 0803"


# --- download ---


def test_absent_files_are_downloaded_into_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    assert locate(_source(_write_all), root) == root
    assert _listing(root) == {"things", "things/one", "things/two"}
    assert locate(_source(), root) == root


def test_only_what_is_missing_is_put_in_place(tmp_path: Path) -> None:
    _write_all(tmp_path, names=("one",))
    before = (tmp_path / "things" / "one").stat()
    locate(_source(_write_all), tmp_path)
    after = (tmp_path / "things" / "one").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert _listing(tmp_path) == {"things", "things/one", "things/two"}


def test_the_downloader_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def download(folder: Path) -> None:
        sys.stdout.write("verified\n")
        sys.stderr.write("100%\n")
        _write_all(folder)

    locate(_source(download), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_dead_connection_cannot_hang_and_the_timeout_is_put_back(tmp_path: Path) -> None:
    seen = []

    def download(folder: Path) -> None:
        seen.append(socket.getdefaulttimeout())
        raise URLError("timed out")

    before = socket.getdefaulttimeout()
    _refusal(_source(download), tmp_path)
    assert seen[0] is not None
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("Name or service not known"), "(<urlopen error Name or service not known>)"),
        (HTTPError("http://host.invalid/x", 404, "Not Found", None, None), "(HTTP Error 404: Not Found)"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), "(timed out)"),
        (ConnectionResetError(104, "Connection reset by peer"), "([Errno 104] Connection reset by peer)"),
        (RuntimeError("File not found or corrupted."), "(File not found or corrupted.)"),
        (RuntimeError("Error:\nTried http://host.invalid/, got:\nno route\n"), "(no route)"),
        (IncompleteRead(b"abc", 7), "(IncompleteRead(3 bytes read, 7 more expected))"),
        (OSError(), "(OSError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_download_says_what_why_and_how_and_leaves_nothing(
    tmp_path: Path, error: Exception, reason: str
) -> None:
    message = _refusal(_failing(error), tmp_path)
    assert f"data set 'things' was not found: looked for one, two in {tmp_path / 'things'}" in message
    assert f"the download failed {reason}" in message
    assert f"put the unpacked folder 'things' into {tmp_path}" in message
    assert "host.invalid" not in message
    assert _listing(tmp_path) == set()
    assert locate(_source(_write_all), tmp_path) == tmp_path


def test_a_failed_download_of_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    _write_all(tmp_path, names=("one",))
    message = _refusal(_failing(URLError("offline")), tmp_path)
    assert f"data set 'things' is incomplete: looked for two in {tmp_path / 'things'}" in message
    assert _listing(tmp_path) == {"things", "things/one"}


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    def download(folder: Path) -> None:
        _write_all(folder, names=("one",))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        locate(_source(download), tmp_path)
    assert _listing(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "data"
    message = _refusal(_source(), root)
    assert f"looked for one, two in {root / 'things'}" in message
    assert f"cannot write to {root} to download it (Not a directory)" in message


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, mode: int = 0o777) -> None:
        raise OSError(30, "Read-only file system", name)

    monkeypatch.setattr("os.mkdir", refuse)
    message = _refusal(_source(), tmp_path)
    assert f"cannot write to {tmp_path} to download it (Read-only file system)" in message


def test_a_good_archive_is_unpacked_instead_of_fetched(tmp_path: Path) -> None:
    def unpack(folder: Path) -> None:
        assert (folder / "things.tar").read_bytes() == ARCHIVE
        _write_all(folder)

    (tmp_path / "things.tar").write_bytes(ARCHIVE)
    locate(_source(unpack), tmp_path)
    assert _listing(tmp_path) == {"things.tar", "things", "things/one", "things/two"}


def test_a_half_archive_is_never_used_nor_touched(tmp_path: Path) -> None:
    def download(folder: Path) -> None:
        assert not (folder / "things.tar").exists()
        (folder / "things.tar").write_bytes(ARCHIVE)
        _write_all(folder)

    (tmp_path / "things.tar").write_bytes(ARCHIVE[:5])
    locate(_source(download), tmp_path)
    assert (tmp_path / "things.tar").read_bytes() == ARCHIVE[:5]
