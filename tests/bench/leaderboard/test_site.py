"""The site: pages that lead to each other, texts that are not trusted, and rows that can be repeated."""

import csv
import html
import re
from pathlib import Path

import pytest

from bench.interface.specification import read_specification
from bench.leaderboard import Source, boards_of, entries_of, write_site
from bench.leaderboard.drawing import Scale
from bench.leaderboard.links import file_name
from bench.leaderboard.methods import UNKNOWN, facts_of
from bench.spec.sources import build
from tests.bench.leaderboard.boards import THEIRS, boards, ours, source
from tests.fake_store import FakeStore

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def written(folder: Path, *sources: Source) -> dict[str, str]:
    """The pages of a site by name."""
    paths = write_site(folder, boards_of(entries_of(sources)), sources)
    assert all(path.is_file() and folder in path.parents for path in paths)
    return {path.name: path.read_text() for path in paths if path.suffix == ".html"}


def cells(text: str, part: str) -> list[list[str]]:
    """The cells of a table of a page, without markup."""
    body = text.partition(f'id="part-{part}"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    plain = [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]
    return [[html.unescape(cell).strip() for cell in row] for row in plain]


def test_every_link_leads_to_a_page_of_the_site(tmp_path: Path) -> None:
    pages = written(tmp_path / "site", source(ours(tmp_path / "store")))
    assert len(pages) == 1 + 1 + 4
    for text in pages.values():
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            if not target.startswith(("#", "data:")):
                assert (tmp_path / "site" / target).is_file(), target
        assert "http" not in re.sub(r"<meta http-equiv", "", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def test_a_ranking_shows_rank_method_accuracy_and_difference(tmp_path: Path) -> None:
    pages = written(tmp_path / "site", source(ours(tmp_path / "store")))
    (ranking,) = (text for name, text in pages.items() if name.startswith("task-"))
    rows = [row[:4] for row in cells(ranking, "ranking")]
    assert rows == [
        ["1", "sbs", "73.00±1.32", "+2.00 [+0.76, +3.24]"],
        ["2", "fixed", "71.00±1.00", "baseline"],
        ["†", "dnas", "80.17±0.29", "+9.17 [+7.27, +11.06] †"],
        ["–", "full_precision", "80.50±0.71", ""],
    ]
    assert "† dnas: repair made 24 choices of its policy" in ranking


def test_the_page_of_a_method_has_its_source_deviations_and_rows(tmp_path: Path) -> None:
    pages = written(tmp_path / "site", source(ours(tmp_path / "store")))
    (text,) = (page for name, page in pages.items() if name.startswith("method-dnas"))
    facts = facts_of("dnas")
    shown = html.unescape(text)
    assert facts.source in shown and all(deviation in shown for deviation in facts.deviations)
    assert [row[4] for row in cells(text, "results")] == ["†"]


def test_a_method_that_is_not_registered_has_a_page_without_claims(tmp_path: Path) -> None:
    fake = ours(tmp_path / "store")
    fake.seeds("mine", [60.0, 61.0], budget_measure="bops")
    pages = written(tmp_path / "site", source(fake))
    (text,) = (page for name, page in pages.items() if name.startswith("method-mine"))
    assert UNKNOWN in text and facts_of("mine").deviations == ()
    assert facts_of("os.path:join").family == UNKNOWN and facts_of("/nowhere/mine.py:Mine").family == UNKNOWN


def test_nothing_of_a_source_becomes_markup_or_a_path(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path / "store", name="quick")
    fake.seeds("fixed", [60.0, 61.0], budget_measure="bops")
    for seed, value in enumerate([70.0, 71.0]):
        fake.run(
            EVIL,
            seed,
            value,
            hardware={"processor": EVIL},
            versions={EVIL: EVIL},
            options={EVIL: EVIL},
            id=f"evil-{seed}",
        )
        fake.run("../../up", seed, value, budget="4bit", id=f"up-{seed}")
    pages = written(tmp_path / "site", source(fake, EVIL))
    for name, text in pages.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name) and "<script>alert" not in text and "<img" not in text
    assert EVIL in html.unescape(pages["index.html"])
    assert not (tmp_path / "up").exists() and not list(tmp_path.glob("*up*"))


@pytest.mark.parametrize("words", ["../../etc/passwd", "a/b\\c", "", "." * 400, "Ünïcödé\0", "CON"])
def test_names_of_pages_are_plain(words: str) -> None:
    assert re.fullmatch(r"task-[a-z0-9-]{0,60}-[0-9a-f]{8}\.html", file_name("task", words, words))


def test_pages_of_names_that_look_alike_differ() -> None:
    assert file_name("method", "a-b", "a-b") != file_name("method", "a_b", "a_b")


def test_a_row_can_be_repeated_from_its_specification(tmp_path: Path) -> None:
    pages = written(tmp_path / "site", source(ours(tmp_path / "store")))
    (ranking,) = (text for name, text in pages.items() if name.startswith("task-"))
    command = next(row[3] for row in cells(ranking, "origin") if row[0] == "sbs")
    match = re.fullmatch(r"bench run --spec (\S+) --methods sbs --budget 4bit --seeds 3 --store repeated", command)
    assert match is not None
    spec = build([read_specification(tmp_path / "site" / match[1])])
    assert spec.task.model == "resnet8" and "sbs" in spec.methods


def test_a_method_of_an_own_file_has_no_command(tmp_path: Path) -> None:
    pages = written(tmp_path / "site", source(ours(tmp_path / "s", method_files={"sbs": "/nowhere/m.py:Sbs"})))
    (ranking,) = (text for name, text in pages.items() if name.startswith("task-"))
    assert {row[3] for row in cells(ranking, "origin")} == {""}


def test_a_refused_source_is_named_with_its_reason(tmp_path: Path) -> None:
    refused = Source(name="theirs.tar.gz", kind="archive", refused="costs: bops is 2, and 1 is recorded")
    pages = written(tmp_path / "site", source(ours(tmp_path / "store")), refused)
    assert ["theirs.tar.gz", "archive", "", "refused", refused.refused] in cells(pages["index.html"], "sources")
    assert "1 refused" in pages["index.html"]


def test_all_rows_are_in_one_file(tmp_path: Path) -> None:
    both = source(ours(tmp_path / "a")), source(ours(tmp_path / "b", THEIRS), "theirs", "numbers")
    written(tmp_path / "site", *both)
    with (tmp_path / "site" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    best = next(row for row in rows if row["method"] == "sbs" and row["source"] == "theirs")
    assert (best["rank"], best["family"], float(best["top1_mean"]), best["checked"]) == (
        "1",
        "learned gates",
        73.0,
        "numbers",
    )
    assert best["repeated"] == "same, 3 seeds by mine"


def test_differences_share_one_scale_on_which_zero_lies(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    fake.seeds("random", [-200.0, -210.0, -190.0], budget_measure="bops")
    (board,) = boards(source(fake))
    scale = Scale.of(board)
    drawn = {
        entry.label: scale.whisker(entry.beside.pair, None, "")  # type: ignore[arg-type]
        for entry in board.entries
        if entry.beside.pair
    }
    assert {one.zero for one in drawn.values()} == {drawn["sbs"].zero} and 0 < drawn["sbs"].zero < 100
    assert all(0 <= one.low <= one.at <= one.high <= 100 for one in drawn.values())
    assert drawn["sbs"].at > drawn["sbs"].zero > drawn["random"].at
    assert drawn["sbs"].high - drawn["sbs"].low > 2  # the row far off does not press the others together
