"""Tables as commands print them, read again."""

import re


def table_rows(printed: str) -> list[list[str]]:
    """Return the cells of each row of the first table, without empty ones; lines that go on with a row are left out."""
    lines = iter(printed.splitlines())
    for line in lines:
        if line.strip() and not line.strip(" ─"):
            break
    rows = []
    for line in lines:
        if not line.strip():
            break
        if line[1] != " ":
            rows.append(re.split(r"\s{2,}", line.strip()))
    return rows
