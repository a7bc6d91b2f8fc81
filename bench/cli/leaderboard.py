"""The command `bench leaderboard`: one site over many studies, stores and archives."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import FOLDER, data_option, networks_option
from bench.outputs.commands import shell
from bench.outputs.terminal import say


@click.command()
@click.argument("sources", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder to which the site is written.")
@networks_option
@data_option
def leaderboard(sources: tuple[Path, ...], out: Path, data_dir: Path | None, *, networks: bool) -> int:
    """Write a static site that ranks the methods of many studies.

    SOURCES are stores, files of `bench archive`, and folders of published studies. Archives are checked as
    `bench verify` does, and refused if they fail.

    \b
    bench leaderboard bench-store --out site
    bench leaderboard docs/results theirs.tar.gz --networks --out site
    """  # noqa: D301  (click wants the character)
    from bench.errors import EXIT_SOME_FAILED, BenchError
    from bench.leaderboard import boards_of, entries_of, read_sources, write_site
    from bench.reporting.wording import count

    with read_sources(sources, data_dir, networks=networks) as read:
        boards = boards_of(entries_of(read))
        if not boards:
            reasons = "; ".join(f"{source.name} is refused: {source.refused}" for source in read if source.refused)
            raise BenchError(
                reasons or "no source has a run with a result at a budget; finish a study first: bench run"
            )
        for source in read:
            say(f"{source.name}: {source.in_words}")
        files = write_site(out, boards, read)
        refused = sum(bool(source.refused) for source in read)
    say(f"{len(files)} files in {out}, {count(len(boards), 'ranking')}; open {shell(out / 'index.html')}")
    return EXIT_SOME_FAILED if refused else 0
