"""Where the rows come from: stores, published studies, and archives, which are checked before they are shown."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.diagnostics.submission.checks import Verdict
from bench.errors import BenchError
from bench.results.published_study import PublishedStudy, published_below
from bench.results.tables import ResultsAsMade, StudyResults
from bench.store.files import Store

CHECKED: Sequence[Verdict] = ("networks", "numbers", "no")
"""How far a source can be checked, the most trustworthy first."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One argument of `bench leaderboard`.

    Attributes:
        name: Last part of its path; paths of other people's machines are nobody's business.
        kind: "store", "archive" or "published".
        studies: Numbers of its studies; none when it is refused.
        check: How far it was checked.
        remarks: What could not be checked, and what was left out, one line each.
        refused: Why it is not shown; empty when it is.
    """

    name: str
    kind: Literal["store", "archive", "published"]
    studies: tuple[StudyResults, ...] = ()
    check: Verdict = "no"
    remarks: tuple[str, ...] = ()
    refused: str = ""

    @property
    def in_words(self) -> str:
        """Kind, number of studies and check of the source, or why it is refused."""
        if self.refused:
            return f"refused: {self.refused}"
        studies = f"{len(self.studies)} {'study' if len(self.studies) == 1 else 'studies'}"
        parts = (f"{self.kind} of {studies}", f"checked: {self.check}")
        return "; ".join([*parts, *self.remarks])


@contextmanager
def read_sources(
    paths: Sequence[Path], data_dir: Path | None = None, *, networks: bool = False
) -> Iterator[list[Source]]:
    """Read all sources. Archives are unpacked into temporary stores, which exist during the `with` block.

    Args:
        paths: Stores, archives, published studies, and folders of published studies.
        data_dir: Folder of data sets, for the checks of archives.
        networks: Whether to evaluate the networks of archives again.

    Raises:
        BenchError: A path is none of these, or two have the same name.
    """
    names = [path.name or path.absolute().name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise BenchError(
                f"two sources are called '{name}'; rename one, since pages show only the last part of a path"
            )
    with ExitStack() as opened:
        yield [_read(path, name, data_dir, opened, networks) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str, data_dir: Path | None, opened: ExitStack, networks: bool) -> Source:
    if path.is_file():
        return _archive(path, name, data_dir, opened, networks)
    if (path / "studies").is_dir():
        return _store(path, name)
    published = list(published_below(path))
    if not published:
        raise BenchError(
            f"'{path}' is no store, no archive and no published study; give the folder of a store, a file of "
            "`bench archive`, or a folder with specification.json, runs.csv, results.csv and versions.json"
        )
    return Source(name=name, kind="published", studies=tuple(map(PublishedStudy, published)))


def _store(path: Path, name: str) -> Source:
    store, studies, remarks = Store(path), [], []
    for study in store.studies():
        document = store.study_document(study)
        if document is None:
            remarks.append(f"the document of study {study} is damaged")
        else:
            studies.append(ResultsAsMade(store, document))
    return Source(name=name, kind="store", studies=tuple(studies), remarks=tuple(remarks))


def _archive(path: Path, name: str, data_dir: Path | None, opened: ExitStack, networks: bool) -> Source:
    """Read an archive; one that is damaged or fails a check is refused."""
    from bench.diagnostics.submission import Inspection, Submission, inspect, unpacked

    try:
        results = opened.enter_context(unpacked(path))
    except BenchError as error:
        return Source(name=name, kind="archive", refused=str(error))
    lines = tuple(inspect(Submission(results=results, data_dir=data_dir), networks=networks))
    found = Inspection(lines=lines, networks=networks)
    if found.faults:
        return Source(name=name, kind="archive", refused="; ".join(found.faults))
    return Source(name=name, kind="archive", studies=(results,), check=found.verdict, remarks=tuple(found.missing))
