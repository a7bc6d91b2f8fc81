"""The style sheet and scripts of pages: DataTables (through itables), Vega-Lite (through vl-convert), and our own."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from bench.inputs.names import FileName, inside
from bench.reporting.charts import COLOURS, DARK_COLOURS, vega_lite_version
from bench.store.files import write_text

TEMPLATES = Path(__file__).parent / "templates"

_FOLDER = FileName("assets")
_LESS_IN_CSS, _LESS_IN_JAVASCRIPT = "\\3c ", "\\x3c"
"""Escapes of "<" in strings."""
_STYLE, _TABLES = FileName("page.css"), FileName("tables.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assets:
    """What a page needs besides its own content.

    Attributes:
        policy: Content security policy of the page.
        head: Elements with the style sheet.
        scripts: Elements with the scripts, in their order.
    """

    policy: str
    head: Markup
    scripts: Markup


@cache
def inline_assets(*, charts: bool) -> Assets:
    """Return the assets of a page that is a single file.

    Args:
        charts: Whether the page has charts, whose library is large.
    """
    scripts = [_tables(), *([_chart_library()] if charts else [])]
    elements = [_element(script) for script in scripts]
    return Assets(
        policy=_policy([*scripts, _own()]),
        head=Markup("<style>{}</style>").format(Markup(_style())),  # noqa: S704  (our own, not of a study)
        scripts=Markup("\n").join([*elements, _element(_own(), module=True)]),
    )


@cache
def linked_assets() -> Assets:
    """Return the assets of a page without charts whose files lie in a folder beside it; see `write_assets`.

    Browsers load modules from a server only, so the page's own script, which is short, stays in the page.
    """
    link = Markup('<link rel="stylesheet" href="{}/{}">').format(_FOLDER, _STYLE)
    tables = Markup('<script src="{}/{}"></script>').format(_FOLDER, _TABLES)
    return Assets(
        policy=_policy([_own()], "'self' file:"),
        head=link,
        scripts=Markup("\n").join([tables, _element(_own(), module=True)]),
    )


def write_assets(folder: Path) -> list[Path]:
    """Write the files that pages with linked assets load, and return their paths.

    Args:
        folder: Folder of the pages.
    """
    files = {inside(folder, _FOLDER, _STYLE): _style(), inside(folder, _FOLDER, _TABLES): _tables()}
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def _policy(inline: list[str], files: str = "") -> str:
    """Return a content security policy: the browser may run these scripts and no others, and may fetch nothing.

    Args:
        inline: Scripts in the page.
        files: Sources of files beside the page; empty for none.
    """
    scripts = " ".join([*(f"'sha256-{_hash(script)}'" for script in inline), *([files] if files else []), "data:"])
    styles = " ".join(["'unsafe-inline'", *([files] if files else [])])
    return f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:"


def _element(script: str, *, module: bool = False) -> Markup:
    kind = Markup(' type="module"') if module else ""
    return Markup("<script{}>{}</script>").format(kind, Markup(script))  # noqa: S704  (our own, not of a study)


@cache
def _style() -> str:
    """Return the style sheet of tables and pages; colours of methods are variables, so that charts follow them."""
    from importlib.resources import files

    from jinja2 import Template

    library = (files("itables") / "html" / "dt_bundle.css").read_text(encoding="utf-8")
    own = Template((TEMPLATES / "style.css").read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    return f"{_enclosed(library, 'style', _LESS_IN_CSS)}\n{own.render(colours=COLOURS, dark_colours=DARK_COLOURS)}"


@cache
def _tables() -> str:
    """Return the script that makes `tables()` load the library of tables: a module, which a page can hold as data."""
    from importlib.resources import files

    module = base64.b64encode((files("itables") / "html" / "dt_bundle.js").read_bytes()).decode()
    return f'window.tables = () => import("data:text/javascript;base64,{module}");'


@cache
def _chart_library() -> str:
    import vl_convert

    charts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    return _enclosed(charts, "script", _LESS_IN_JAVASCRIPT)


@cache
def _own() -> str:
    return (TEMPLATES / "page.js").read_text(encoding="utf-8")


def _enclosed(text: str, element: str, less: str) -> str:
    """Escape a library's text, so that nothing in its strings and comments ends the element around it.

    Args:
        text: Text of the library.
        element: Name of the element.
        less: Escape of "<" in strings of the library's language.
    """
    plain = text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it
    return re.sub(rf"<(?=/{element}|!--)", lambda _: less, plain, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
