"""The checks of `bench doctor` that look at plug-ins, and at data sets and their files."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, get_args

import bench
from bench.diagnostics.doctor.environment import project
from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.diagnostics.wording import some
from bench.errors import BenchError, first_line
from bench.plugins.entry_points import Kind

_PROJECT = "sbs-bench"
_REINSTALL = "pip install -e . in the checkout"


def datasets_name(_: DoctorRequest) -> Iterator[Finding]:
    """Check that the package `datasets` of this process is ours."""
    file = _datasets_file()
    own = Path(bench.__file__).resolve().parent.parent / "datasets" / "__init__.py"
    also = _hugging_face()
    if file is None:
        yield Finding(check="datasets", status=PROBLEM, found="there is no package 'datasets'", remedy=_REINSTALL)
    elif own.is_file() and file.resolve() != own:
        remedy = "import bench before it, or use the `bench` command; see PYTHONPATH"
        yield Finding(check="datasets", status=PROBLEM, found=f"'datasets' is another package: {file}", remedy=remedy)
    else:
        yield Finding(check="datasets", status=OK, found=f"'datasets' is this project's, {file.parent}{also}")


def _datasets_file() -> Path | None:
    loaded = sys.modules.get("datasets")
    if loaded is not None:
        return Path(str(loaded.__file__))
    spec = importlib.util.find_spec("datasets")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _hugging_face() -> str:
    try:
        return f"; Hugging Face's {version('datasets')} is installed too, for other programs"
    except PackageNotFoundError:
        return ""


def plugins(request: DoctorRequest) -> Iterator[Finding]:
    """Check that every plug-in can be loaded, and that no name is used twice."""
    if request.torch_is_broken:
        yield Finding(check="plug-ins", status=WARN, found="cannot be checked until torch can be imported")
        return
    for kind in get_args(Kind):
        yield from _plugins_of_kind(kind)


def _plugins_of_kind(kind: Kind) -> Iterator[Finding]:
    entries = list(entry_points(group=f"bench.{kind}"))
    faults = [*_undeclared(kind, entries), *_duplicates(kind, entries), *_unloadable(kind, entries)]
    yield from faults
    if not faults:
        names = sorted({entry.name for entry in entries})
        yield Finding(check="plug-ins", status=OK, found=f"{len(names)} {kind} load: {', '.join(names)}")


def _undeclared(kind: Kind, entries: Sequence[EntryPoint]) -> Iterator[Finding]:
    """Report names that the checkout declares but the installation does not know yet."""
    declared = project().get("entry-points", {}).get(f"bench.{kind}", {})
    missing = sorted(set(declared) - {entry.name for entry in entries})
    if missing or not entries:
        found = f"{kind} not installed: {', '.join(missing) or 'none is'}"
        yield Finding(check="plug-ins", status=PROBLEM, found=found, remedy=_REINSTALL)


def _duplicates(kind: Kind, entries: Sequence[EntryPoint]) -> Iterator[Finding]:
    """Report names that two packages declare."""
    for name in sorted({entry.name for entry in entries}):
        values = sorted({f"{entry.value} ({_package(entry)})" for entry in entries if entry.name == name})
        if len({value.partition(" ")[0] for value in values}) > 1:
            found = f"two {kind} are called '{name}': {' and '.join(values)}"
            remedy = "rename one in its package's entry points and reinstall it, or `pip uninstall` it"
            yield Finding(check="plug-ins", status=PROBLEM, found=found, remedy=remedy)


def _unloadable(kind: Kind, entries: Sequence[EntryPoint]) -> Iterator[Finding]:
    """Report plug-ins that cannot be loaded."""
    for entry in entries:
        try:
            entry.load()
        except Exception as error:
            package = _package(entry)
            found = f"{kind.removesuffix('s')} '{entry.name}' of {package} ({entry.value}) does not load: "
            remedy = _REINSTALL if package == _PROJECT else f"correct it, or `pip uninstall {package}`"
            yield Finding(
                check="plug-ins",
                status=PROBLEM,
                found=f"{found}{type(error).__name__}: {first_line(error)}",
                remedy=remedy,
            )


def _package(entry: EntryPoint) -> str:
    return "unknown package" if entry.dist is None else str(entry.dist.name)


def data_sets(request: DoctorRequest) -> Iterator[Finding]:
    """Check that the files of each data set are present."""
    if request.torch_is_broken:
        yield Finding(check="data", status=WARN, found="cannot be checked until torch can be imported")
        return
    for name, entry in sorted({entry.name: entry for entry in entry_points(group="bench.datasets")}.items()):
        if request.spec is None or request.spec.task.dataset == name:
            yield _data_set(request, entry)


def _data_set(request: DoctorRequest, entry: EntryPoint) -> Finding:
    check = f"data {entry.name}"
    try:
        kind = entry.load()
        files: Sequence[Path] | None = kind.files(request.data_dir) if hasattr(kind, "files") else None
        if files is None:
            return _without_files(request, entry, check, kind)
        missing = [path for path in files if not path.is_file()]
        if missing:
            return _missing(request, check, files, missing)
        if request.thorough:
            return _loaded(request, check, kind)
        return Finding(check=check, status=OK, found=f"its {len(files)} files are in {files[0].parent}")
    except BenchError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(check=check, status=PROBLEM, found=found, remedy=remedy)
    except Exception as error:
        return Finding(check=check, status=PROBLEM, found=f"{type(error).__name__}: {first_line(error)}", remedy="")


def _without_files(request: DoctorRequest, entry: EntryPoint, check: str, kind: Any) -> Finding:
    """Check a data set that lists no files. Ours are part of the installation; others may be large and are not read."""
    if hasattr(kind, "folders"):
        return _image_folders(request, check, kind)
    if request.thorough or request.spec is not None or _package(entry) == _PROJECT:
        return _loaded(request, check, kind)
    return Finding(check=check, status=OK, found=f"of {_package(entry)}; read only with --thorough")


def _loaded(request: DoctorRequest, check: str, kind: Any) -> Finding:
    dataset = kind.described(data_dir=request.data_dir)
    train, test = dataset.load(request.data_dir).parts(dataset)
    found = f"intact: {len(train)} training and {len(test)} test images"
    return Finding(check=check, status=OK, found=found)


def _image_folders(request: DoctorRequest, check: str, kind: Any) -> Finding:
    """Check a data set of image files. It is not downloaded, so its absence is a problem if a study needs it."""
    try:
        folders: Sequence[Path] = kind.folders(request.data_dir)
    except BenchError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(check=check, status=WARN if request.spec is None else PROBLEM, found=found, remedy=remedy)
    if request.thorough and folders:
        return _loaded(request, check, kind)
    if request.spec is not None and not folders:
        kind.described(data_dir=request.data_dir)  # its error says what is needed
    where = " and ".join(map(str, folders)) or "the folder of --data-dir"
    return Finding(check=check, status=OK, found=f"its images are in {where}")


def _missing(request: DoctorRequest, check: str, files: Sequence[Path], missing: Sequence[Path]) -> Finding:
    """Report missing files: a problem if others are present, or if a study needs them."""
    folder = files[0].parent
    wanted = request.spec is not None or len(missing) < len(files)
    names = some(path.name for path in missing)
    found = f"{'not' if len(missing) == len(files) else f'{names} not'} found in {folder}"
    return Finding(
        check=check,
        status=PROBLEM if wanted else WARN,
        found=found,
        remedy=f"the first run with it downloads it; without a network put {names} there, or give another "
        "folder with --data-dir DIR",
    )


CHECKS: tuple[tuple[str, Check], ...] = (("datasets", datasets_name), ("plug-ins", plugins), ("data", data_sets))
