"""The pages of the leaderboard: one for each board, one for each method, an index, and all rows as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.inputs.names import FileName, inside
from bench.leaderboard import listings, tables
from bench.leaderboard.boards import Board, Entry
from bench.leaderboard.drawing import Scale
from bench.leaderboard.links import Links, file_name
from bench.leaderboard.methods import MethodFacts, facts_of
from bench.leaderboard.repeating import Repeating
from bench.leaderboard.sources import Source
from bench.plugins.registry import load
from bench.reporting.charts import method_looks
from bench.reporting.pages.assets import linked_assets, write_assets
from bench.reporting.pages.glyphs import glyph_of
from bench.reporting.pages.page import Page, Row, ShownPart, ShownSection, render
from bench.reporting.report import DEFAULT_WIDTH, Document, Section
from bench.reporting.wording import count
from bench.store.files import write_text

_INDEX, _ROWS = FileName("index.html"), "rows"
_HOME = ("Leaderboard", str(_INDEX))


def write_site(folder: Path, boards: Sequence[Board], sources: Sequence[Source]) -> list[Path]:
    """Write the leaderboard, and return the paths of its files.

    Args:
        folder: Folder of the site; made when absent.
        boards: Boards in the order of the index.
        sources: All sources, also those that are refused.

    Raises:
        BenchError: A registered method cannot be loaded.
    """
    entries = list({id(entry): entry for board in boards for entry in board.entries}.values())
    known = {name: facts_of(name) for name in sorted({entry.method for entry in entries})}
    looks = method_looks(known)
    links = Links(
        methods={name: file_name("method", name, name) for name in known},
        boards={board.identity: _board_file(board) for board in boards},
        glyphs={name: glyph_of(look) for name, look in looks.items()},
    )
    repeating = Repeating(entries)
    files = {links.boards[board.identity]: _board_page(board, known, links, repeating) for board in boards}
    files |= {links.methods[name]: _method_page(facts, boards, links) for name, facts in known.items()}
    files[_INDEX] = _index(boards, known, sources, links)
    paths = [*write_assets(folder), *repeating.write(folder)]
    for name, page in files.items():
        paths.append(inside(folder, FileName(name)))
        write_text(paths[-1], render(page, linked_assets()))
    paths.append(inside(folder, FileName(f"{_ROWS}.csv")))
    write_text(paths[-1], _csv(boards, known))
    return paths


def _board_file(board: Board) -> FileName:
    words = " ".join((board.terms.dataset, board.terms.model, board.budget))
    return file_name("task", words, board.identity)


def _csv(boards: Sequence[Board], known: Mapping[str, MethodFacts]) -> str:
    table = listings.all_rows(_ROWS, boards, known)
    document = Document(study="", sections=(Section(name="", title="", parts=(table,)),))
    return str(load("forms", "csv").render(document, DEFAULT_WIDTH))


def _section(name: str, title: str, *parts: ShownPart, folded: bool = False) -> ShownSection:
    return ShownSection(name=name, title=title, parts=parts, folded=folded)


def _choices(rows: Sequence[Row], names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the filters of a page that have something to choose among."""
    values = {name: sorted({row.values[name] for row in rows} - {""}) for name in names}
    return {name: known for name, known in values.items() if len(known) > 1}


def _board_page(board: Board, known: Mapping[str, MethodFacts], links: Links, repeating: Repeating) -> Page:
    ranking = tables.ranking(board, known, links, Scale.of(board))
    heading = f"{board.terms.model} on {board.terms.dataset} at {board.budget}"
    return Page(
        title=f"{heading}: leaderboard",
        heading=heading,
        about=tuple(filter(None, (board.limit_in_words, board.terms.in_words, _common_hardware(board)))),
        way=(_HOME,),
        filters=_choices(ranking.rows, ("family", "checked")),
        sections=(
            _section("ranking", "Ranking", ranking),
            _section("origin", "How each row was obtained", tables.origin(board, repeating), folded=True),
            _section("terms", "What all rows have in common", tables.terms(board), folded=True),
        ),
    )


def _common_hardware(board: Board) -> str:
    """Return the hardware that all rows of a board share; the table shows the others'."""
    used = {entry.hardware for entry in board.entries}
    return used.pop() if len(used) == 1 else ""


def _method_page(facts: MethodFacts, boards: Sequence[Board], links: Links) -> Page:
    rows = [(board, entry) for board in boards for entry in board.entries if entry.method == facts.name]
    results = listings.results_of_method(rows, links)
    return Page(
        title=f"{facts.name}: leaderboard",
        heading=facts.name,
        about=(facts.summary,),
        way=(_HOME,),
        filters=_choices(results.rows, ("data", "model", "budget")),
        sections=(
            _section("results", "All its rows", results),
            _section("definition", "What it is", tables.definition(facts)),
        ),
    )


def _index(boards: Sequence[Board], known: Mapping[str, MethodFacts], sources: Sequence[Source], links: Links) -> Page:
    listed = listings.all_boards(boards, links)
    entries: list[Entry] = list({id(entry): entry for board in boards for entry in board.entries}.values())
    refused = sum(bool(source.refused) for source in sources)
    return Page(
        title="Leaderboard: compression at matched budgets",
        heading="Leaderboard",
        about=(
            "Compression methods at matched budgets",
            count(len(entries), "row"),
            count(len(sources) - refused, "source") + (f", {refused} refused" if refused else ""),
        ),
        filters=_choices(listed.rows, ("data", "model", "budget")),
        sections=(
            _section("tasks", "Tasks", listed),
            _section("methods", "Methods", listings.all_methods(known, entries, links)),
            _section("sources", "Sources", listings.all_sources(sources)),
        ),
    )
