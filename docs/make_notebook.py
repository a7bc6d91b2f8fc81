"""Run the cells of `docs/study.ipynb` and write what they show into it: `python docs/make_notebook.py`.

The cells run in a new folder, as plain Python: a notebook server is not needed.
"""

import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from bench.reporting.charts import save

PAGE = Path(__file__).with_name("study.ipynb")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any]) -> None:
    """Run all cells in the working directory, one after the other, and replace their outputs."""
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code_cells(notebook), 1):
        text, value = _run_cell("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = number, []
        if text:
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        if value is not None:
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
            cell["outputs"].append(result | {"data": _shown(value)})


def _run_cell(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell; return what it prints, and the value of its last line if that is an expression."""
    magic, _, rest = source.partition("\n")
    if magic.startswith("%%writefile "):
        Path(magic.split()[1]).write_text(rest + "\n")
        return f"Writing {magic.split()[1]}\n", None
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


def _shown(value: Any) -> dict[str, Any]:
    """Return the forms in which a notebook shows a value."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if type(value).__module__.startswith("altair."):  # a chart
        with tempfile.TemporaryDirectory() as folder:
            picture = save(value, Path(folder) / "chart.png").read_bytes()
        return {"text/plain": ["a chart"], "image/png": base64.b64encode(picture).decode()}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return data


if __name__ == "__main__":
    notebook = json.loads(PAGE.read_text())
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        run(notebook)
        os.chdir(before)
    PAGE.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
