"""Folders for output that cannot be written are found before any work is done for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.outputs.folders import require_writable
from tests import fake_store


@pytest.mark.parametrize("place", ["file/inner", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match=r"cannot write to '.*': .*; choose another folder with --out DIR"):
        require_writable(tmp_path / place)


def test_a_folder_is_tried_without_being_left(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("report", "quick", "--store"), ("leaderboard",), ("export", "quick", "--store")])
def test_commands_say_so_before_they_print(command: tuple[str, ...], bench: Callable[..., Any], tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path / "store")
    fake.document()
    (tmp_path / "file").touch()
    refusal = bench(*command, fake.root, "--out", tmp_path / "file" / "inner").refusal
    assert refusal.startswith(f"cannot write to '{tmp_path / 'file' / 'inner'}': Not a directory; choose another")
