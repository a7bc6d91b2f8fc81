"""Write the sections of `docs/methods.md` from the methods themselves: `.venv/bin/python docs/make_methods.py`.

Names and their order come from the entry points in `pyproject.toml`; summaries, families, sources, abilities, options
and deviations from the classes; what options mean from their docstrings; and values of the paper's schedule from its
files. The result replaces what stands between `<!-- methods -->` and `<!-- end -->` in the page.
`tests/docs/test_methods_page.py` fails when the page is not what this script would write.
"""

import importlib
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.method import Method
from bench.spec.options import Options

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"

_SCHEDULES = ROOT / "bench" / "spec" / "presets" / "schedules"
_BLOCK = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)
_ATTRIBUTE = re.compile(r"(?m)^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)")
"""Names that a docstring describes together, and the description with its further lines."""
_COLUMNS = 100

Methods = Mapping[str, type[Method]]
"""Classes of methods by name, in the order of the page."""
PaperOptions = Mapping[str, Mapping[str, Any]]
"""Options that a schedule sets, by method."""


def methods() -> Methods:
    """Load the methods of this project."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["bench.methods"]
    places = {name: entry.split(":") for name, entry in entries.items()}
    return {name: getattr(importlib.import_module(module), kind) for name, (module, kind) in places.items()}


def paper_options(schedule: str) -> PaperOptions:
    """Read the options that a schedule of presets sets."""
    options: PaperOptions = tomllib.loads((_SCHEDULES / f"{schedule}.toml").read_text())["options"]
    return options


def meanings(options: type[Options]) -> dict[str, str]:
    """Return what each option means, from the docstrings of the class and of those that it extends."""
    described: dict[str, str] = {}
    for kind in reversed(options.__mro__):
        if issubclass(kind, Options):
            for names, text in _ATTRIBUTE.findall(inspect.getdoc(kind) or ""):
                described |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {name: described[name] for name in options.model_fields}


def overview(known: Methods) -> Iterator[str]:
    """Yield the lines of the table of all methods."""
    yield "| method | family | chooses among | removes filters | meets its budget by | quantizer of its own |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, kind in known.items():
        can = kind.capabilities
        removes = "yes" if can.prunes else "no"
        by = {"strength": "λ", "direct": "itself", "ignored": "–"}[can.budget]
        own = "yes" if can.own_quantizer else "no"
        yield f"| [`{name}`](#{name}) | {kind.family} | {_candidates(kind)} | {removes} | {by} | {own} |"


def _candidates(kind: type[Method]) -> str:
    """Name the numbers of bits from which a method chooses for one tensor, by default."""
    fields, can = kind.Options.model_fields, kind.capabilities
    if can.mixed_precision:
        return f"{', '.join(map(str, fields['bits'].default))} bits"
    return "32 bits" if can.full_precision or "bits" not in fields else "one number of bits for all layers"


def sections(known: Methods) -> Iterator[str]:
    """Yield the lines of the sections of all methods."""
    shown: dict[tuple[type[Options], str], str] = {}
    for name, kind in known.items():
        module = kind.__module__.replace(".", "/")
        yield f"### {name}\n"
        yield _wrapped(f"{kind.summary}.") + "\n"
        yield _wrapped(f"Source: {kind.source}. File: [{module}.py](../{module}.py).") + "\n"
        yield from _options(name, kind.Options, shown)
        if kind.deviations:
            yield "\n".join(_wrapped(text, "* ") for text in kind.deviations) + "\n"


def _options(name: str, options: type[Options], shown: dict[tuple[type[Options], str], str]) -> Iterator[str]:
    """Yield the table of a method's options, without those that a method before it has with the same values.

    Args:
        name: Name of the method.
        options: Class of its options.
        shown: Methods whose tables were written, by the class of their options and the values of the paper's schedule;
            the method is added.
    """
    paper, imagenet = paper_options("paper").get(name, {}), paper_options("imagenet-paper").get(name, {})
    values = json.dumps([paper, imagenet], sort_keys=True)
    extended = [kind for kind in options.__mro__ if issubclass(kind, Options)]
    known = next((kind for kind in extended if (kind, values) in shown), Options)
    left = [option for option in options.model_fields if option not in known.model_fields]
    if known is not Options:
        other = shown[known, values]
        yield f"Options: those of [`{other}`](#{other}){', and' if left else '.'}\n"
    shown.setdefault((options, values), name)
    if not left:
        return
    yield "| option | default | paper | meaning |"
    yield "| --- | --- | --- | --- |"
    described = meanings(options)
    for option in left:
        default = _value(options.model_fields[option].get_default(call_default_factory=True))
        yield f"| `{option}` | {default} | {_paper_value(option, paper, imagenet)} | {described[option]} |"
    yield ""


def _paper_value(option: str, paper: Mapping[str, Any], imagenet: Mapping[str, Any]) -> str:
    """Show the value of an option in the paper's schedule; that for ImageNet too, where it is another one."""
    shown, other = (_value(values[option]) if option in values else "" for values in (paper, imagenet))
    return shown if shown == other else f"{shown or 'default'} (ImageNet: {other or 'default'})"


def _value(value: object) -> str:
    return "absent" if value is None else f"`{json.dumps(value)}`"


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def page(text: str, known: Methods) -> str:
    """Return the page with table and sections as the methods are now."""
    written = "\n".join([*overview(known), "", *sections(known)])
    return _BLOCK.sub(lambda match: f"{match[1]}\n{written}\n{match[2]}", text)


def main() -> None:
    """Write table and sections into the page."""
    PAGE.write_text(page(PAGE.read_text(), methods()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
