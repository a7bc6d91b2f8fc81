"""Write the tables of `docs/keys.md` from the schema of the specification: `python docs/make_keys.py`."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from bench.spec.keys import Key, keys
from bench.spec.options import table_class
from bench.spec.schema import StudySpec

PAGE = Path(__file__).with_name("keys.md")
BEGIN, END = "<!-- keys -->", "<!-- end -->"


def page(text: str) -> str:
    """Return the page with new tables."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(tables())
    return f"{before}{BEGIN}\n\n{lines}\n{END}{after}"


def tables() -> Iterator[str]:
    """Yield the lines of a table for each table of the specification."""
    known = keys()
    for name in dict.fromkeys(key.table for key in known):
        yield f"## {_title(name)}\n"
        yield "| key | default | allowed | meaning |\n| --- | --- | --- | --- |"
        yield from (_row(key) for key in known if key.table == name)
        yield ""


def _title(table: str) -> str:
    if not table:
        return "The study"
    kind: type[BaseModel] = StudySpec
    for name in table.split("."):
        kind = table_class(kind.model_fields[name].annotation) or kind
    summary = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    return f"`{table}`: {summary[0].lower()}{summary[1:]}"


def _row(key: Key) -> str:
    cells = f"`{key.name}`", f"`{key.default}`", key.allowed, key.meaning
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
