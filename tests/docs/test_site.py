"""The documentation site, as far as it can be checked without building it; `make docs` builds it strictly."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """A script of `docs/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = script("make_site")


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pages of the site, before MkDocs makes HTML of them; without the notebook, which needs nbconvert."""
    monkeypatch.setattr(SITE, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(SITE, "write_notebook", lambda path: (SITE.PAGES / SITE.site_path(path)).touch())
    SITE.write_pages()
    return tmp_path / "pages"


def navigation() -> list[str]:
    """The pages that the navigation lists."""
    text = (ROOT / "mkdocs.yml").read_text()
    section = re.search(r"(?ms)^nav:\n.*?(?=^\S)", text)
    assert section is not None
    listed: list[str] = []
    waiting = yaml.safe_load(section[0])["nav"]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            listed.append(entry)
        else:
            waiting += [inner for value in entry.values() for inner in (value if isinstance(value, list) else [value])]
    return listed


def test_the_navigation_has_every_page_once(pages: Path) -> None:
    made = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    listed = navigation()
    assert len(listed) == len(set(listed))
    expected = {page for page in made if not re.match(r"source/|results/[\w-]+/", page)}
    assert set(listed) == expected, "list the page under nav in mkdocs.yml"


def test_links_of_the_pages_lead_to_pages_and_files_of_the_site(pages: Path) -> None:
    missing = [
        (page.relative_to(pages), link[2])
        for page in pages.rglob("*.md")
        for link in SITE.LINK.finditer(page.read_text())
        if "source" not in page.parts and not (page.parent / link[2]).exists()
    ]
    assert not missing


@pytest.mark.parametrize(
    ("page", "link", "changed"),
    [
        ("README.md", "docs/costs.md#budgets", "costs.md#budgets"),
        ("README.md", "CONTRIBUTING.md", "contributing.md"),
        ("README.md", "docs/results/README.md", "results/README.md"),
        ("docs/python.md", "study.ipynb", "study.md"),
        ("docs/tutorial/device.md", "../deploy.md", "../deploy.md"),
        ("docs/tutorial/device.md", "../../README.md", "../index.md"),
        ("docs/methods.md", "../methods/sbs.py", "source/methods/sbs.py.md"),
    ],
)
def test_links_are_changed_to_where_the_site_has_a_file(page: str, link: str, changed: str) -> None:
    assert SITE.with_site_links(f"[a]({link}) `[b](c)`", page).startswith(f"[a]({changed})")


def test_links_within_a_page_and_to_other_hosts_stay() -> None:
    text = "[a](#costs), [b](https://example.org/c.md)"
    assert SITE.with_site_links(text, "docs/costs.md") == text


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "@import url(https://example.org/a.css);",
        "a { background: url('https://example.org/a.png') }",
        '<img alt="a" src=http://example.org/a.png>',
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_seen(text: str) -> None:
    assert SITE.fetched_from_elsewhere(text)


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.org">a link</a>',
        '<link rel="canonical" href="https://example.org/">',
        '<script src="assets/a.js"></script>',
        '<code>&lt;script src="https://example.org/a.js"></code>',
    ],
)
def test_links_that_only_a_reader_follows_are_allowed(text: str) -> None:
    assert not SITE.fetched_from_elsewhere(text)


def test_the_page_of_commands_shows_them_as_they_are() -> None:
    made = script("make_commands")
    text = made.PAGE.read_text()
    assert made.page(text) == text, "run .venv/bin/python docs/make_commands.py"


def test_the_reference_describes_every_name_of_the_api() -> None:
    described = re.findall(r"(?m)^::: bench\.api\.(\w+)$", (ROOT / "docs" / "api-reference.md").read_text())
    stated = re.findall(r"(?m)import (?:\w+ as )?(\w+)$", (ROOT / "bench" / "api.pyi").read_text())
    assert sorted(described) == sorted(stated), "list the name in docs/api.md and docs/api-reference.md"


def test_the_reference_describes_every_name_of_the_package() -> None:
    page = (ROOT / "docs" / "python-reference.md").read_text()
    described = re.findall(r"(?m)^::: bench\.(\w+)$", page)
    stated = re.findall(r"(?m)import (?:\w+ as )?(\w+)$", (ROOT / "bench" / "__init__.pyi").read_text())
    assert sorted([*described, "BenchError"]) == sorted(stated)
    assert "api-reference.md#errors" in page
