"""One line on each plug-in, read from its source where possible, so that a list of plug-ins imports none of them."""

import ast
from importlib.metadata import EntryPoint

from bench.plugins import entry_points
from bench.plugins.entry_points import Kind
from bench.plugins.registry import load
from bench.plugins.source_hash import module_file


def summary(kind: Kind, name: str) -> str:
    """Return the line on a plug-in: its attribute `summary`, or else the first line of its docstring.

    Raises:
        BenchError: The name is unknown, or the plug-in has to be imported and cannot be.
    """
    return _written(entry_points.find(kind, name)) or summary_of(load(kind, name))


def summary_of(plugin: object) -> str:
    """Return the line on a plug-in that is imported already."""
    return str(getattr(plugin, "summary", None) or (plugin.__doc__ or "").partition("\n")[0])


def _written(entry: EntryPoint) -> str | None:
    """Return the line as it is written in the source; `None` when it is not written there as a plain text."""
    file, name = module_file(entry.module), entry.value.rpartition(":")[2]
    if file is None or file.suffix != ".py":
        return None
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None  # importing it reports the error
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class_summary(node)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0] or None
    return None


def _class_summary(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="summary")], value=ast.Constant(value=str(text)))
                | ast.AnnAssign(target=ast.Name(id="summary"), value=ast.Constant(value=str(text)))
            ):
                return text
    return None
