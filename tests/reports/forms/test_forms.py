"""All forms of a report show the same figures."""

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.plugins.registry import load
from bench.reporting.report import make_document, write_document, write_tables
from reports.forms.page import page
from tests.reports.reading import ALL, EVIL, cells_of_page, results_of

_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


def numbers(lines: Sequence[str]) -> list[str]:
    return _NUMBERS.findall(" ".join(lines))


def body_of_latex(text: str) -> str:
    text = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    return text.replace(r"\textasciitilde{}", "~")


def body_of_markdown(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("|")).split("\n", 2)[2]


def test_all_renderings_show_the_same_numbers(mixed: Any, tmp_path: Path) -> None:
    document = make_document(results_of(mixed), ALL)
    out = tmp_path / "out"
    shown = cells_of_page(page(document))
    names = {table.name for table in document.tables}
    assert set(shown) == names == {file.stem for file in write_tables(document, out) if file.suffix == ".csv"}
    for table in document.tables:
        expected = [[column.title for column in table.columns], *map(list, table.rows)]
        assert list(csv.reader(io.StringIO((out / f"{table.name}.csv").read_text()))) == expected
        assert shown[table.name] == expected
        of_cells = [number for row in table.rows for number in numbers(row)]
        assert numbers([body_of_latex((out / f"{table.name}.tex").read_text())]) == of_cells
        assert numbers([body_of_markdown((out / f"{table.name}.md").read_text())]) == of_cells


def test_everything_is_written(mixed: Any, tmp_path: Path) -> None:
    document = make_document(results_of(mixed), ALL)
    files = {file.name for file in write_document(document, tmp_path / "out")}
    wanted = {"index.html"}
    wanted |= {f"{table.name}{suffix}" for table in document.tables for suffix in (".md", ".tex", ".csv")}
    wanted |= {f"{figure.name}{suffix}" for figure in document.figures for suffix in (".svg", ".pdf", ".png")}
    assert files == wanted == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "tradeoff.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(mixed: Any, tmp_path: Path) -> None:
    mixed.failed("sbs", 9, "50% of _x_ & $y$ #1 {a} ~ ^ \\ é → 漢 \U0001f600 " + EVIL)
    document = make_document(results_of(mixed), ALL)
    write_document(document, tmp_path)
    text = load("forms", "latex").render(document, 100)
    inputs = "".join(rf"\input{{{table.name}.tex}}\clearpage " for table in document.tables)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    (tmp_path / "all.tex").write_text(rf"{head}\begin{{document}}{inputs}\end{{document}}")
    (tmp_path / "whole.tex").write_text(f"{head}\\begin{{document}}\n{text}\n\\end{{document}}")
    for name in ("all.tex", "whole.tex"):
        done = subprocess.run(
            [str(shutil.which("pdflatex")), "-interaction=nonstopmode", "-halt-on-error", name],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
