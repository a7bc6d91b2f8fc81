"""The identity of source code: a hash of what it computes, not of how it is worded or where it lies.

The hash is taken from syntax trees. Comments, formatting, docstrings, the texts that a method shows about itself, and
the name of the module that a definition lies in are no part of it. Everything else is: one changed operator or
constant gives another hash.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

_TEXTS = frozenset({"summary", "source", "deviations"})
"""Class attributes that a method only shows; see `bench.method.Method`."""

_SIMPLE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)

VERSION = "syntax-1"
"""Prefix of every hash: a hash made by another rule is told apart from one of other code."""


def hash_sources(sources: Mapping[str, bytes], own: Collection[str]) -> str:
    """Hash the code of several modules.

    The hash depends on the set of their top-level statements. Moving a definition from one module to another, or
    splitting a module, leaves it as it is.

    Args:
        sources: Source code by module name.
        own: Names of modules and packages whose imports are left out, since what they define is hashed itself.

    Returns:
        `VERSION`, a colon, and 64 hexadecimal digits of SHA-256.
    """
    trees = {name: _bare(source) for name, source in sources.items()}
    entries = {entry for tree in trees.values() for entry in _definitions(tree)}
    entries |= _imports(trees, own)
    digest = hashlib.sha256()
    for entry in sorted(entries):
        digest.update(entry.encode() + b"\0")
    return f"{VERSION}:{digest.hexdigest()}"


def _bare(source: bytes) -> ast.Module:
    """The syntax tree without docstrings and without texts that are only shown.

    Code that Python cannot parse stands for itself: as one string.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module([ast.Assign([ast.Name("unparsed")], ast.Constant(source))], [])
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [statement for statement in body if not _is_text(statement, isinstance(node, ast.ClassDef))]
            node.body = kept or ([] if isinstance(node, ast.Module) else [ast.Pass()])  # type: ignore[attr-defined]
    return tree


def _is_text(statement: ast.stmt, in_class: bool) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    return in_class and isinstance(statement, ast.Assign | ast.AnnAssign) and set(_bound(statement)) <= _TEXTS


def _definitions(tree: ast.Module) -> Iterator[str]:
    """Every statement but imports: each definition by itself, all others of the module in their order."""
    statements = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    bindings = Counter(name for node in statements for name in _bound(node))
    in_order = []
    for node in statements:
        code = _dump(node)
        if isinstance(node, _SIMPLE) and all(bindings[name] == 1 for name in _bound(node)):
            yield code
        else:  # the order of statements with effects matters, and that of two definitions of one name
            in_order.append(code)
    if in_order:
        yield "\n".join(in_order)


def _bound(node: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [found.id for target in targets for found in ast.walk(target) if isinstance(found, ast.Name)]


def _dump(node: ast.AST) -> str:
    """A tree as text, the same for every version of Python: empty fields are left out, and so are imports."""
    if isinstance(node, ast.Constant):
        return repr(node.value)
    fields = ((name, _dump_field(value)) for name, value in ast.iter_fields(node))
    return f"{type(node).__name__}({','.join(f'{name}={text}' for name, text in fields if text)})"


def _dump_field(value: object) -> str:
    if isinstance(value, list):
        texts = [_dump_field(element) for element in value if not isinstance(element, ast.Import | ast.ImportFrom)]
        return f"[{','.join(texts)}]" if texts else ""
    if isinstance(value, ast.AST):
        return _dump(value)
    return "" if value is None else repr(value)


def _imports(trees: Mapping[str, ast.Module], own: Collection[str]) -> set[str]:
    """What imports say beyond the place of a definition.

    That is all of an import from foreign packages. Of an own one it is a new name that it gives, and which definition
    is meant where several modules define the name or a whole module is imported.
    """
    codes = {
        module: {name: _dump(node) for node in tree.body for name in _bound(node)} for module, tree in trees.items()
    }
    counts = Counter(name for names in codes.values() for name in names)
    entries = set()
    for module, tree in trees.items():
        for base, name, alias in _aliases(tree, module):
            imported_module = f"{base}.{name}" if name else base
            if not _is_own(base, own):
                entries.add(f"import {base} {name} {alias}")
            elif imported_module in codes:
                entries.add(f"import {sorted(codes[imported_module].values())} {alias}")
            elif counts[name] > 1:
                entries.add(f"import {codes.get(base, {}).get(name, base)} {alias}")
            elif name and alias != name:
                entries.add(f"import {name} as {alias}")
    return entries


def _is_own(module: str, own: Collection[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:depth]) in own for depth in range(1, len(parts) + 1))


def _aliases(tree: ast.AST, module: str) -> Iterator[tuple[str, str, str]]:
    """Module, name in it (empty for a whole module) and the name that it gets, for each import, also in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", alias.asname or "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module)
            yield from ((base, alias.name, alias.asname or alias.name) for alias in node.names)


def _base(node: ast.ImportFrom, module: str) -> str:
    parents = module.split(".")[: -node.level] if node.level else []
    return ".".join([*parents, *filter(None, [node.module])])


def imported_modules(source: bytes, module: str) -> list[str]:
    """List the names in import statements, also inside functions; `from a import b` may mean the module `a.b`."""
    found = []
    for base, name, _ in _aliases(ast.parse(source), module):
        found += [base, f"{base}.{name}"] if name else [base]
    return found


def module_file(module: str) -> Path | None:
    """Find the file of a module; `None` when there is none, e.g. because the name is a function's."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def module_file_of_import(name: str) -> Path | None:
    """Find the file of a name in an import statement; `None` when it is no module's."""
    return module_file(name) if may_be_module(name) else None


def may_be_module(name: str) -> bool:
    """Whether a name can be a module's: only packages have modules in them, and looking would import the rest."""
    parent = name.rpartition(".")[0]
    return not parent or ((path := module_file(parent)) is not None and path.name == "__init__.py")
