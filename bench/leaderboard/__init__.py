"""The leaderboard: one static site over many studies, stores and archives.

`sources` reads the studies and checks archives, `terms` says what rows must have in common to be ranked together,
`boards` ranks them, and `site` writes the pages.
"""

from bench.leaderboard.boards import boards_of, entries_of
from bench.leaderboard.site import write_site
from bench.leaderboard.sources import Source, read_sources

__all__ = ["Source", "boards_of", "entries_of", "read_sources", "write_site"]
