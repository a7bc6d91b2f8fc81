"""Methods in files: their names, messages for those that cannot be used, and studies."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError
from bench.planning.methods import method_class
from bench.planning.plan import make_plan
from bench.plugins import method_files
from bench.plugins import registry as plugins
from bench.results.status import unit_states
from bench.results.tables import StudyResults
from bench.spec.sources import build, with_schedule
from bench.store.files import Store
from methods.fixed import Fixed

METHOD = """
from typing import Annotated
from pydantic import Field
from bench.method import Capabilities, Method, SearchResult
from bench.spec.options import Options
from bench.compression.policy import uniform
from NEIGHBOUR import WIDTH


class Widths(Options):
    width: Annotated[int, Field(ge=1)] = WIDTH


class FourBits(Method):
    '''For tests.'''

    summary = "Four bits everywhere"
    capabilities = Capabilities(budget="direct")
    Options = Widths

    def search(self, job):
        return SearchResult(policy=uniform(job.task.network, self.options.width), state=job.pretrained)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method's file with a module beside it that it imports. Names are unique, since modules stay loaded."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return write(tmp_path / "folder", f"width_of_{tmp_path.name.replace('-', '_')}")


def write(folder: Path, neighbour: str, width: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{neighbour}.py").write_text(f"WIDTH = {width}\n")
    (folder / "mine.py").write_text(METHOD.replace("NEIGHBOUR", neighbour))
    return folder / "mine.py"


def neighbour(file: Path) -> Path:
    return next(path for path in file.parent.glob("*.py") if path != file)


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """Clear the cache of hashes: files change within these tests, but not within a command."""
    method_files.source_hash.cache_clear()


# --- names ---


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Halve", "halve"), ("HalfBits", "half_bits"), ("SBSFast", "sbs_fast"), ("Net2Bits", "net2_bits"), ("A", "a")],
)
def test_a_method_in_a_file_is_called_as_its_class(kind: str, name: str) -> None:
    assert method_files.snake_case(kind) == name
    assert method_files.parse_entry(f"a/b.py:{kind}") == (name, f"{Path.cwd()}/a/b.py:{kind}")


def test_it_may_be_given_another_name(tmp_path: Path) -> None:
    assert method_files.parse_entry(f"mine={tmp_path}/a.py:Halve") == ("mine", f"{tmp_path}/a.py:Halve")
    assert method_files.parse_entry("sbs") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.py", "method 'a.py' names no class; the form of a method in a file is path/to/file.py:Class"),
        ("a.py:", "names no class"),
        ("a.py:Bad-Class", "names no class"),
        ("a:Class", "is neither a name (see `bench list methods`) nor of the form path/to/file.py:Class"),
        ("mine=sbs", "is neither a name"),
        ("my name=a.py:Class", "'my name' is not a valid name"),
    ],
)
def test_other_forms_are_refused(text: str, told: str) -> None:
    with pytest.raises(BenchError) as caught:
        method_files.parse_entry(text)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_names_must_differ(file: Path) -> None:
    fixed = file.with_name("other.py")
    with pytest.raises(
        BenchError, match=r"two methods are called 'fixed': methods.fixed:Fixed, which is registered, and"
    ):
        build([{"methods": [f"{fixed}:Fixed"]}])
    with pytest.raises(BenchError, match=r"two methods are called 'four_bits': .*mine.py:FourBits, and .*other.py"):
        build([{"methods": [f"{file}:FourBits", f"{fixed}:FourBits"]}])
    spec = build([{"methods": [f"{file}:FourBits", f"wide={fixed}:FourBits", "sbs"]}])
    assert spec.methods == ("four_bits", "wide", "sbs")
    assert spec.method_files == {"four_bits": f"{file}:FourBits", "wide": f"{fixed}:FourBits"}


def test_a_specification_survives_its_file_and_keeps_the_options_of_methods_in_files(file: Path) -> None:
    stated = {"schedule": "quick", "methods": [f"{file}:FourBits"], "options": {"four_bits": {"width": 3}}}
    spec = build([with_schedule(stated)])
    assert spec.options["four_bits"] == {"width": 3}
    assert build([json.loads(spec.model_dump_json())]) == spec


# --- loading ---


def test_it_is_loaded_with_what_lies_beside_it(file: Path) -> None:
    kind = method_class("four_bits", f"{file}:FourBits")
    assert (kind.__name__, kind.Options().model_dump()) == ("FourBits", {"width": 4})
    assert method_class("fixed") is Fixed


NOT_A_METHOD = {
    "class FourBits: pass": "is not a subclass of bench.method.Method; see docs/adding-a-method.md",
    "FourBits = 4": "is not a subclass of bench.method.Method",
    "from bench.method import Method\nclass FourBits(Method): pass": "does not define search",
    "from bench.method import Method\nclass FourBits(Method):\n    def search(self, job): pass": "no class attribute '",
    "class FiveBits: pass": "unknown class 'FourBits': did you mean 'FiveBits'? known: FiveBits (see",
    "x = 1\nimport nowhere_to_be_found": "ModuleNotFoundError: No module named 'nowhere_to_be_found' (line 2)",
    "x = 1\n\ndef f(:": "SyntaxError: invalid syntax (line 3)",
    "def f():\n    return 1 / 0\nf()": "ZeroDivisionError: division by zero (line 2)",
    "raise SystemExit(3)": "SystemExit: 3 (line 1)",
}


@pytest.mark.parametrize("text", NOT_A_METHOD)
def test_what_cannot_be_used_is_one_line_that_says_why(bench: Callable[..., Any], tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    refusal = bench("run", "--methods", f"{path}:FourBits", "--dry-run").refusal
    told, _, line = NOT_A_METHOD[text].partition(" (line ")
    assert told in refusal and str(path) in refusal
    if line:
        assert f"({path}:{line}; the traceback is in " in refusal
        assert "Traceback" in Path(refusal.rpartition(" ")[2]).read_text()


def test_a_file_that_is_not_there(bench: Callable[..., Any], tmp_path: Path) -> None:
    refusal = bench("run", "--methods", "nowhere.py:FourBits", "--dry-run").refusal
    assert refusal == f"cannot read the method's file '{tmp_path}/here/nowhere.py': No such file or directory"


def test_an_unknown_option_of_it(bench: Callable[..., Any], file: Path) -> None:
    run = ("run", "--methods", f"{file}:FourBits", "--dry-run", "--set")
    assert (
        "unknown key 'options.four_bits' option 'widht': did you mean 'width'?"
        in bench(*run, "options.four_bits.widht=3").refusal
    )
    assert "'options.four_bits.width' is 0" in bench(*run, "options.four_bits.width=0").refusal


def test_a_neighbour_whose_name_means_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    method_files.load(f"{file}:FourBits")
    other = write(tmp_path / "other folder", neighbour(file).stem, width=2)
    with pytest.raises(BenchError, match=r"imports 'width_of_.*', which is .* here and not the file beside it; rename"):
        method_files.load(f"{other}:FourBits")


# --- its source ---


def test_its_source_follows_it_and_what_lies_beside_it_but_not_its_location(file: Path, tmp_path: Path) -> None:
    def now(path: Path) -> str:
        method_files.source_hash.cache_clear()
        return plugins.source_hash("methods", f"{path}:FourBits")

    first = now(file)
    moved = Path(shutil.copytree(file.parent, tmp_path / "moved"))
    assert now((moved / "mine.py").rename(moved / "renamed.py")) == first
    (file.parent / "unused.py").write_text("")
    assert now(file) == first
    neighbour(file).write_text("WIDTH = 5\n")
    assert now(file) != first
    neighbour(file).write_text("WIDTH = 4\n")
    file.write_text(file.read_text() + "changed = 1\n")
    assert now(file) != first


def test_its_source_contains_the_building_blocks_of_ours_that_it_uses(file: Path) -> None:
    file.write_text("from methods.fixed import Fixed\nfrom pack import deep\nimport bench.matching.repair\n")
    (file.parent / "pack").mkdir()
    (file.parent / "pack" / "__init__.py").write_text("from . import other\n")
    (file.parent / "pack" / "deep.py").write_text("import pack.other\n")
    (file.parent / "pack" / "other.py").write_text("")
    found = {name for name, _ in method_files._imported(file)}
    ours = {name for name in found if name.partition(".")[0] == "methods"}
    assert found - ours == {"pack", "pack.deep", "pack.other"} and {"methods", "methods.fixed"} <= ours


# --- studies ---


def spec_of(tiny: SimpleNamespace, *methods: str, **changes: Any) -> Any:
    return build([{**tiny.values, "methods": list(methods), "seeds": [0], "budgets": ["4bit"], **changes}])


def test_its_folder_is_no_part_of_a_runs_identity(file: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(file.parent, tmp_path / "moved")) / "mine.py"
    neighbour(moved).unlink()  # else it would be another one's
    moved.write_text(METHOD.replace("from NEIGHBOUR import WIDTH", "WIDTH = 4"))
    here, there = (make_plan(spec_of(tiny, f"{path}:FourBits")) for path in (file, moved))
    assert [unit.identity for unit in here.runs] == [unit.identity for unit in there.runs]
    assert [unit.label for unit in here.runs] == ["four_bits"]
    named = make_plan(spec_of(tiny, f"mine={file}:FourBits"))
    assert [unit.identity for unit in named.runs] != [unit.identity for unit in here.runs]


def test_the_server_of_processes_imports_what_is_a_module(file: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    """A method in a file and a model that is named by its location are left out."""
    (tmp_path / "my_nets.py").write_text("from bench.models.resnet import resnet8 as make\n")
    sys.path.append(str(tmp_path))
    task = {**tiny.values["task"], "model": "my_nets:make"}
    study = tiny.Workshop(spec_of(tiny, f"{file}:FourBits", "fixed", task=task), tmp_path / "store").study_run
    assert study.modules == ["datasets.synthetic", "methods.fixed", "my_nets"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"jobs": 2, "backend": "loky"}, {}], ids=["loky", "alone"])
def test_a_study_with_it_in_a_process_of_its_own(
    file: Path, tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """The working directory is not the file's folder; then the file is changed, moved and removed."""
    monkeypatch.chdir("/")

    def worked(path: Path) -> StudyResults:
        method_files.source_hash.cache_clear()
        done = tiny.work(spec_of(tiny, f"{path}:FourBits"), tmp_path / "store", isolated=True, **settings)
        return read(done.store)

    def read(store: Store) -> StudyResults:
        method_files.source_hash.cache_clear()
        return StudyResults(store, store.load_study("tiny"))

    found = worked(file)
    assert found.runs[["method", "status"]].values.tolist() == [["four_bits", "done"]]
    if settings:
        return
    text, store = file.read_text(), found.store
    file.write_text(text + "changed = 1\n")
    assert read(store).runs["reason"].tolist() == ["method source changed"]
    file.write_text(text)
    moved = file.rename(file.with_name("renamed.py"))  # its neighbour stays
    assert read(store).runs["status"].tolist() == ["done"]
    assert {state.state for state in unit_states(store, store.load_study("tiny"))} == {"done"}
    again = worked(moved)
    assert again.runs["started"].tolist() == found.runs["started"].tolist()  # everything was there
    moved.write_text(text + "changed = 1\n")
    assert worked(moved).runs["status"].tolist() == ["done"]
    assert len(list((store.root / "runs").glob("*.stale-1"))) == 1


def test_another_method_of_the_same_name_in_the_store_is_not_taken_for_it(
    file: Path, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """This holds while its file exists, and after it was deleted."""
    first, other = f"{file}:FourBits", file.with_name("other.py")
    other.write_text(file.read_text() + "ANOTHER = 1\n")
    store = tiny.work(spec_of(tiny, first, name="one"), tmp_path / "store").store
    tiny.work(spec_of(tiny, f"{other}:FourBits", name="two"), tmp_path / "store")
    for _ in range(2):
        method_files.source_hash.cache_clear()
        status = {name: StudyResults(store, store.load_study(name)).runs["status"].tolist() for name in ("one", "two")}
        assert status == {"one": ["stale"], "two": ["done"]}
        file.unlink(missing_ok=True)
