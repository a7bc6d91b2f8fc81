"""Build the documentation site into `build/site`: `make docs`.

Pages are written for readers of the repository. This script copies them into `build/pages` with links that fit the
site: `README.md` becomes the first page, a linked file of code a page that shows it, and the notebook a page with its
outputs. Then MkDocs makes the site, which stops at links and anchors that lead nowhere (`mkdocs.yml`). At last the
script looks for everything that a page would fetch from another host. No network is needed.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
FIRST = ["README.md", "CONTRIBUTING.md"]
"""Pages outside of `docs/`. The files of `docs/` itself, and what they link to, are added."""
_MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "docs/study.ipynb": "study.md"}
_LANGUAGES = {".py": "python", ".toml": "toml", ".csv": "text"}
"""Files that are shown on pages of their own."""
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\shref=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|@import[^;]*//[^;]+|url\([\"']?(?:https?:)?//[^)]+"
)


def site_path(path: str) -> str:
    """Return where the site has a file.

    Args:
        path: Path of the file from the root of the repository.
    """
    if path in _MOVED:
        return _MOVED[path]
    if path.startswith("docs/") and Path(path).suffix not in _LANGUAGES:
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def targets(text: str, path: str) -> Iterator[str]:
    """Yield the files that a page links to, by their paths from the root of the repository."""
    for link in LINK.finditer(text):
        yield _target(link, path)


def with_site_links(text: str, path: str) -> str:
    """Return a page whose links lead to where the site has the files.

    Args:
        text: Markdown of the page.
        path: Path of the page from the root of the repository.
    """

    def changed(link: re.Match[str]) -> str:
        new = relpath(site_path(_target(link, path)), dirname(site_path(path)) or ".")
        return f"{link[1]}{new}{link[3] or ''}{link[4]}"

    return LINK.sub(changed, text)


def _target(link: re.Match[str], path: str) -> str:
    return normpath(f"{dirname(path) or '.'}/{link[2]}")


def source_page(path: str) -> str:
    """Return a page that shows a file. The search leaves it out."""
    text = (ROOT / path).read_text()
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n``````{_LANGUAGES[Path(path).suffix]}\n{text}``````\n"


def write_notebook(path: str) -> None:
    """Write a notebook as a page, with its pictures beside it."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.reads((ROOT / path).read_text(), as_version=4)
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    page = PAGES / site_path(path)
    body = body.replace('<table border="1" class="dataframe">', "<table>")  # as other tables of the site
    page.write_text(with_site_links(body, path))
    for name, picture in resources["outputs"].items():
        (page.parent / name).write_bytes(picture)


def write_pages() -> None:
    """Write all pages, and all files that they link to, into `build/pages`."""
    shutil.rmtree(PAGES, ignore_errors=True)
    waiting = FIRST + [path.relative_to(ROOT).as_posix() for path in _starting_pages()]
    written: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in written or not (ROOT / path).is_file():  # MkDocs names links to files that do not exist
            continue
        written.add(path)
        page = PAGES / site_path(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".md"):
            text = (ROOT / path).read_text()
            page.write_text(with_site_links(text, path))
            waiting += targets(text, path)
        elif path.endswith(".ipynb"):
            write_notebook(path)
        elif site_path(path).startswith("source/"):
            page.write_text(source_page(path))
        else:
            shutil.copyfile(ROOT / path, page)


def _starting_pages() -> Iterator[Path]:
    for pattern in ("*.md", "*.ipynb", "tutorial/*.md", "results/*.md", "assets/*"):
        yield from sorted((ROOT / "docs").glob(pattern))


def fetched_from_elsewhere(text: str) -> list[str]:
    """Return the parts of a page or style sheet that make a browser fetch something from another host."""
    return [match[0] for match in _FETCHED.finditer(re.sub(r"<code.*?</code>", "", text, flags=re.DOTALL))]


def main() -> None:
    """Build the site.

    Raises:
        SystemExit: MkDocs found an error, or a page would fetch something from another host.
    """
    write_pages()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "SITE_NAME": f"SBS Bench {version}"}
    made = subprocess.run([sys.executable, "-m", "mkdocs", "build"], cwd=ROOT, env=environment, check=False)
    if made.returncode:
        raise SystemExit(made.returncode)
    pages = [path for path in sorted(SITE.rglob("*")) if path.suffix in {".html", ".css"}]
    foreign = [
        f"{path.relative_to(ROOT)}: {part}" for path in pages for part in fetched_from_elsewhere(path.read_text())
    ]
    if foreign:
        raise SystemExit("pages fetch from other hosts:\n" + "\n".join(foreign))
    print(f"the site is in {SITE.relative_to(ROOT)}; open {SITE / 'index.html'}")  # noqa: T201


if __name__ == "__main__":
    main()
