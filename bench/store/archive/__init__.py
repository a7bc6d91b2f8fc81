"""Archives of studies: `archive` writes a study and its units into one file, `restore` brings it into a store.

An archive is a gzipped tar of regular files: `studies/<name>/…`, the study's units as the store has them, and last
`MANIFEST.json` with the size and checksum of every file. Equal content gives equal bytes. A file that is restored is
not trusted: it is verified from beginning to end before anything of it is written.
"""

from bench.store.archive.layout import MANIFEST
from bench.store.archive.restoring import Restored, restore
from bench.store.archive.writing import Archived, archive

__all__ = ["MANIFEST", "Archived", "Restored", "archive", "restore"]
