"""Stores with made-up results, and the boards of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnostics.submission.checks import Verdict
from bench.leaderboard import Source, boards_of, entries_of
from bench.leaderboard.boards import Board
from bench.results.tables import ResultsAsMade
from tests.fake_store import FakeStore

MINE, THEIRS = "2026-01-01T00:00:00+00:00", "2026-02-02T00:00:00+00:00"


def source(
    fake: FakeStore, name: str = "mine", check: Verdict = "no", places: dict[str, Any] | None = None, **spec: Any
) -> Source:
    """A store as a source."""
    results = ResultsAsMade(fake.store, fake.document(**spec) | {"places": places or {}})
    return Source(name=name, kind="store", studies=(results,), check=check)


def ours(root: Path, started: str = MINE, **spec: Any) -> FakeStore:
    """A study of four methods: one breaks equality, and one is a reference."""
    fake = FakeStore(root, spec={"methods": ["fixed", "sbs", "dnas", "full_precision"]} | spec)
    measured = {"started": started, "budget_measure": "bops"}
    fake.seeds("fixed", [70.0, 71.0, 72.0], **measured)
    fake.seeds("sbs", [72.0, 72.5, 74.5], **measured)
    fake.seeds("dnas", [80.0, 80.0, 80.5], **measured, metrics={"repaired_gates": 24})
    fake.seeds("full_precision", [80.0, 81.0], budget=None, started=started, metrics={"bops": 2.5e9})
    return fake


def boards(*sources: Source) -> list[Board]:
    """The boards of some sources."""
    return boards_of(entries_of(sources))


def ranks(board: Board) -> Sequence[tuple[str, str]]:
    """Rank and method of each row, in their order."""
    return [(board.rank(entry), entry.label) for entry in board.entries]
