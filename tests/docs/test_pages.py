"""All pages: short lines, links that lead somewhere, and names, files and commands that exist."""

import ast
import importlib
import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest

from bench.cli.main import bench as commands
from bench.cli.run import make_specification
from bench.planning.plan import make_plan
from bench.results.tables import StudyResults
from bench.spec.sources import build, read_toml, with_schedule
from tests.fake_store import FakeStore

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "README.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/tutorial/*.md")),
    *sorted(ROOT.glob("docs/results/*.md")),
]
MOST_COLUMNS = 100
GROUPS = {"bench.methods", "bench.datasets", "bench.models", "bench.reports", "bench.forms", "bench.checks"}
"""Entry-point groups, which are written like modules."""
RUN = ("docs/tutorial/", "docs/adding-a-method.md")
"""Pages whose commands all go through tests of their own: `test_tutorial`, `test_adding_a_method`."""
OTHERS = {"Conv2d", "Linear", "ConvTranspose2d", "MultiheadAttention", "Path"}
"""Classes of other packages that pages name."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def without_generated(text: str) -> str:
    """A page without the tables that scripts write into it."""
    return re.sub(r"<!-- (?!end).*?<!-- end -->", "", text, flags=re.DOTALL)


def prose(text: str) -> str:
    """A page without tables and without what is printed as it is."""
    text = re.sub(r"^```.*?^```", "", without_generated(text), flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    ")))


@each_page
def test_lines_are_short(page: Path) -> None:
    assert not [line for line in prose(page.read_text()).splitlines() if len(line) > MOST_COLUMNS]


@each_page
def test_paragraphs_of_lists_are_indented_by_four(page: Path) -> None:
    """With fewer, the site ends the list there, while other renderers go on with it."""
    assert not re.findall(r"(?m)^\n {1,3}\S.*$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        if name.startswith(("http:", "https:")):
            continue
        linked = page if not name else page.parent / name
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_page
def test_files_exist(page: Path) -> None:
    named = re.findall(
        r"\b(?:bench|methods|datasets|reports|tests|docs)/[\w./-]*\w", without_generated(page.read_text())
    )
    assert not [name for name in named if not (ROOT / name).exists()]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a module defines or imports, and those of its classes as `Class.name`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        found.update(_names(node))
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{name}" for inner in node.body for name in _names(inner))
    return frozenset(found)


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.If):  # imports for types
        yield from (name for inner in node.body for name in _names(inner))


def exists(dotted: str) -> bool:
    """Whether `package.module.name` names a package, a module, or something that a module defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path, rest = ROOT.joinpath(*parts[:length]), ".".join(parts[length:])
        sources = [path.with_suffix(ending) for ending in (".py", ".pyi")]
        sources += [path / "__init__.py", path / "__init__.pyi"] if path.is_dir() else []
        if present := [source for source in sources if source.is_file()]:
            return not rest or any(rest in names_in(source) for source in present)
    return False


@each_page
def test_modules_and_their_names_exist(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", without_generated(page.read_text()))
    dotted = re.findall(r"(?<![\w./-])(?:bench|methods|datasets|reports|tests)(?:\.(?!md\b)\w+)+", text)
    assert not [name for name in dotted if name not in GROUPS and not exists(name)]


@cache
def classes() -> frozenset[str]:
    """Names of all classes and type aliases of the project."""
    files = [path for folder in ("bench", "methods", "datasets", "reports") for path in (ROOT / folder).rglob("*.py")]
    return frozenset(name for path in files for name in names_in(path))


@each_page
def test_classes_exist(page: Path) -> None:
    named = re.findall(r"`([A-Z][a-z]+(?:[A-Z0-9][a-z0-9]*)*)(?:\.(\w+))?(?:\([^`]*)?`", prose(page.read_text()))
    unknown = [name for name, _ in named if name not in classes() | OTHERS]
    unknown += [f"{name}.{member}" for name, member in named if member and f"{name}.{member}" not in classes()]
    assert not unknown


def test_the_page_on_keys_shows_them_as_they_are() -> None:
    spec = importlib.util.spec_from_file_location("make_keys", ROOT / "docs" / "make_keys.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = made.PAGE.read_text()
    assert made.page(text) == text, "run .venv/bin/python docs/make_keys.py"


def test_the_page_on_the_api_lists_all_its_names() -> None:
    rows = re.findall(r"(?m)^\| (?!for|---).*$", (ROOT / "docs" / "api.md").read_text())
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    stated = re.findall(r"(?m)import (?:\w+ as )?(\w+)$", (ROOT / "bench" / "api.pyi").read_text())
    assert sorted(listed) == sorted(stated)


def printed_commands(page: Path, *, in_sentences: bool) -> Iterator[list[str]]:
    """Complete commands `bench …` of a page; those that say what may be given, with brackets or bars, are none."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"(?m)^ {4}(?:\$ )?bench (.*)$", text)
    for line in lines + (re.findall(r"`bench ([^`]*)`", text) if in_sentences else []):
        if not re.search(r"[|…]|\[[A-Z-]| {2,}[A-Za-z]", line.partition(" #")[0]):
            yield shlex.split(line, comments=True)


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for name, *arguments in printed_commands(page, in_sentences=True):
        if name.isupper():
            continue
        command = commands.commands.get(name)
        assert isinstance(command, click.Command), name
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {argument for argument in arguments if argument.startswith("--")}
        assert given <= known | {"--help"}, (name, given - known)


@each_page
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of options are allowed, and a study can be specified. The commands of RUN are run by other tests."""
    if page.relative_to(ROOT).as_posix().startswith(RUN):
        return
    monkeypatch.chdir(ROOT)  # specifications are named from there
    machine = {"dry_run", "store_dir", "data_dir", "jobs", "tracking_uri", "backend", "scheduler", "timeout"}
    machine |= {"memory_limit", "retry", "optuna_storage", "in_process", "runs_per_card"}
    for name, *arguments in printed_commands(page, in_sentences=False):
        try:
            values = commands.commands[name].make_context(name, arguments).params
        except click.BadParameter as error:
            assert "does not exist" in error.message, error.message  # the reader has the file
            continue
        if name == "run":
            keys = {key: value for key, value in values.items() if key not in machine}
            make_specification(**keys | {"device": keys["device"] or "cpu"}, elsewhere=True)


@each_page
def test_modules_that_are_run_exist(page: Path) -> None:
    assert not [name for name in re.findall(r"python -m (tests[\w.]+)", page.read_text()) if not exists(name)]


@pytest.mark.parametrize("script", sorted(ROOT.glob("docs/*.py")), ids=lambda script: script.stem)
def test_scripts_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(script.parent)
    spec = importlib.util.spec_from_file_location(f"docs_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_finding_of_the_first_page_is_in_the_results() -> None:
    """Both differences of SBS with their intervals, and that of random policies."""
    finding = PAGES[0].read_text().partition("**One finding.**")[2].partition("\n\n")[0].replace("−", "-")
    (table,) = re.findall(r"<!-- results: equal -->.*?<!-- end -->", RESULTS.read_text(), re.DOTALL)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    found = {(row[0], row[1]): (row[5], row[6]) for row in rows}
    for budget in ("3bit", "4bit"):
        delta, interval = found["sbs", budget]
        assert delta in finding and interval in " ".join(finding.split())
    assert found["random", "3bit"][0] in finding


SPECIFICATIONS = [path for path in sorted(ROOT.glob("docs/results/*.toml")) if path.stem != "questions"]


@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.stem)
def test_published_studies_can_be_planned_and_their_rows_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the specification names its checkpoint from there
    plan = make_plan(build([with_schedule(read_toml(path))]))
    provenance = ROOT / "docs" / "results" / plan.spec.name / "provenance.md"
    named = re.findall(r"--spec docs/results/(\S+) --methods (\S+)", provenance.read_text())
    assert {file for file, _ in named} == {path.name}
    assert {method for _, method in named} == set(plan.spec.methods)


@pytest.fixture
def make_results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes the tables of results."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("make_results")


def test_the_questions_about_a_study_are_answered_from_its_runs(make_results: ModuleType, tmp_path: Path) -> None:
    fake = FakeStore(tmp_path, name="longer", spec={"budgets": ["3bit"]})
    for method, values in {"sbs": [70.0, 71.0, 72.0], "fixed": [70.5, 71.5, 73.0]}.items():
        fake.seeds(method, values, budget="3bit")
    (table,) = make_results.answers(StudyResults(fake.store, fake.document())).tables
    against_fixed, against_random = table.rows
    assert against_fixed[1:] == ("sbs", "fixed", "3bit", "3", "-0.67", "[-1.38, +0.05]", "n<6", "0.94")
    assert against_random[1:] == ("sbs", "random", "3bit", "0", "", "", "", "")


def test_tables_of_results_are_replaced_in_place(make_results: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- answers: a -->\nold\n<!-- end -->\n<!-- answers: b -->\nkept\n<!-- end -->\n")
    make_results.fill_in("answers: a", "| new |\n", [page])
    expected = "before\n<!-- answers: a -->\n\n| new |\n\n<!-- end -->\n<!-- answers: b -->\nkept\n<!-- end -->\n"
    assert page.read_text() == expected


def test_the_printed_differences_on_the_page_are_computed(
    make_results: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = importlib.import_module("make_printed_differences")
    page = ROOT / "docs" / "paper.md"
    copy = tmp_path / "paper.md"
    copy.write_text(page.read_text())
    monkeypatch.setattr(script, "PAGE", copy)
    script.main()
    assert copy.read_text() == page.read_text(), "run .venv/bin/python docs/make_printed_differences.py"
    verdicts = Counter(row[-2] for row in script.joined().rows)
    stated = re.search(
        r"Of the (\d+) comparisons, (\d+) are told apart.*?, (\d+) depend.*?and (\d+) are not", copy.read_text(), re.S
    )
    assert stated is not None
    assert list(map(int, stated.groups())) == [
        verdicts.total(),
        verdicts["yes"],
        verdicts["depends on rounding"],
        verdicts["no"],
    ]
