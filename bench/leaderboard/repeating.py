"""How a reader repeats a row: the specification of its runs as a file of the site, and a command that names it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.inputs.names import FileName, StudyName, inside
from bench.leaderboard.boards import Entry
from bench.outputs.commands import command, seeds_argument
from bench.results.tables import section
from bench.spec.schema import canonical_hash
from bench.store.files import write_checked

_FOLDER = FileName("specifications")
_LONGEST_NAME = 60


class Repeating:
    """The specifications of all rows, each once.

    Args:
        entries: Rows of the leaderboard.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._files = {id(entry): _file(entry) for entry in entries if _can_be_repeated(entry)}
        self._specifications = {
            self._files[id(entry)]: entry.terms.specification for entry in entries if id(entry) in self._files
        }

    def command(self, entry: Entry) -> str:
        """Return the command that repeats a row beside the site's files; empty if its method's code is not known."""
        if id(entry) not in self._files:
            return ""
        budget = ("--budget", entry.group.budget) if entry.group.budget else ()
        return command(
            *("run", "--spec", f"{_FOLDER}/{self._files[id(entry)]}", "--methods", entry.method, *budget),
            *("--seeds", seeds_argument(sorted(entry.top1)), "--store", "repeated"),
        )

    def write(self, folder: Path) -> list[Path]:
        """Write the specifications into a folder of the site, and return their paths."""
        paths = []
        for name, specification in self._specifications.items():
            paths.append(inside(folder, _FOLDER, name))
            write_checked(paths[-1], {"spec": dict(specification)})
        return paths


def _can_be_repeated(entry: Entry) -> bool:
    files = section(entry.terms.specification, "method_files")
    return not files and bool(entry.top1)


def _file(entry: Entry) -> FileName:
    """Return a name that no other specification has; names of studies have letters that files may have."""
    specification: Mapping[str, Any] = entry.terms.specification
    return FileName(f"{StudyName(entry.study)[:_LONGEST_NAME]}-{canonical_hash(specification)[:8]}.json")
