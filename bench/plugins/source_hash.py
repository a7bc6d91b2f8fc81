"""The identity of source code: a hash of what it computes, independent of its wording and its module.

The hash is taken from syntax trees. It leaves out comments, formatting, docstrings, the descriptions that a method
gives of itself, and the names of the modules that hold the definitions. Everything else counts: one changed operator
or constant gives another hash.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

_TEXTS = frozenset({"summary", "family", "source", "deviations"})
"""Class attributes that only describe a method; see `bench.method.Method`."""

_SIMPLE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)

_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Names of folders in which packages of all kinds are installed."""

VERSION = "syntax-1"
"""Prefix of every hash. It distinguishes a hash made by another rule from the hash of other code."""


def hash_sources(sources: Mapping[str, bytes], own: Collection[str]) -> str:
    """Hash the code of several modules.

    The hash depends on the set of their top-level statements. It does not change when a definition moves from one
    module to another, or when a module is split.

    Args:
        sources: Source code by module name.
        own: Names of modules and packages whose imports are left out, since their definitions are hashed themselves
            or, as for `bench`, are identified elsewhere.

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
    """Return the syntax tree without docstrings and without descriptions.

    Code that Python cannot parse is represented by one string, itself.
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
    if not in_class or not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    parts = list(ast.walk(statement.value))
    only_text = all(isinstance(part.value, str) for part in parts if isinstance(part, ast.Constant))
    names = set(_bound(statement))
    return bool(names) and names <= _TEXTS and only_text and not any(isinstance(part, ast.Call) for part in parts)


def _definitions(tree: ast.Module) -> Iterator[str]:
    """Yield the code of each definition, then that of all other statements in their order; imports are left out."""
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
    """Return the names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _dump(node: ast.AST) -> str:
    """Write a tree as text that is the same in every version of Python: without empty fields, and without imports."""
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
    """Return what imports contribute to the code, apart from the module that holds a definition.

    An import from a foreign package counts as a whole. An import from an own package counts if it renames something,
    if several modules define the name, or if it imports a whole module.
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
    """Yield module, name in it (empty for a whole module) and local name of each import, also inside functions."""
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
    """List the names in import statements, also inside functions; `from a import b` may mean the module `a.b`.

    Names that are given to `import_module` as text count too.
    """
    names = []
    tree = ast.parse(source)
    for base, name, _ in _aliases(tree, module):
        names += [base, f"{base}.{name}"] if name else [base]
    return names + list(_named_in_calls(tree, module))


def _named_in_calls(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield the names of modules in calls such as `importlib.import_module("helper")`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        function, name = node.func, node.args[0].value
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if called in ("import_module", "__import__") and isinstance(name, str):
            inner = name.lstrip(".")
            yield _base(ast.ImportFrom(module=inner, names=[], level=len(name) - len(inner)), module)


def imported_files(module: str, file: Path | None, find: Callable[[str], Path | None]) -> Iterator[tuple[str, Path]]:
    """Yield the names and files of a module, of its packages, and of all modules that these import, directly or not.

    Args:
        module: Name of the module.
        file: File of the module; without one nothing is yielded.
        find: Function that returns the file of an imported name; `None` for names that are not to be followed.
    """
    packages = list(_with_packages(module))[:-1]
    waiting, seen = [*((name, find(name)) for name in packages), (module, file)], {module, *packages}
    while waiting:
        name, path = waiting.pop()
        if path is None:
            continue
        yield name, path
        for imported in _names_in(path, name):
            if imported not in seen:
                seen.add(imported)
                waiting.append((imported, find(imported)))


def _names_in(file: Path, module: str) -> list[str]:
    """List the names that a file imports, with their packages; none if the file cannot be read or parsed."""
    try:
        names = imported_modules(file.read_bytes(), f"{module}.__init__" if file.name == "__init__.py" else module)
    except (SyntaxError, ValueError, OSError):
        return []  # loading the file reports the error
    return [part for name in names for part in _with_packages(name)]


def _with_packages(module: str) -> Iterator[str]:
    """Yield the names of a module's packages, the outermost first, and its own."""
    parts = module.split(".")
    return (".".join(parts[: depth + 1]) for depth in range(len(parts)))


def module_file(module: str) -> Path | None:
    """Find the file of a module; `None` when there is none, e.g. because the name is that of a function.

    Nothing is imported to find out, not even packages.
    """
    top, _, inner = module.partition(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner:
        return Path(spec.origin) if spec.origin is not None and spec.has_location else None
    folders = spec.submodule_search_locations or ()
    return next(filter(None, (file_in(Path(folder), inner) for folder in folders)), None)


def file_in(folder: Path, module: str) -> Path | None:
    """Find the file of a module whose package begins in a folder; folders without `__init__.py` are packages too."""
    base = folder.joinpath(*module.split("."))
    return next((file for file in (base / "__init__.py", base.with_name(f"{base.name}.py")) if file.is_file()), None)


def folders_of(module: str, file: Path) -> list[Path]:
    """List the folders from which a module may import its own helpers: its file's, and the one of its package.

    A folder into which packages are installed is left out.
    """
    above = file.parent if file.name == "__init__.py" else file
    return [folder for folder in (file.parent, above.parents[module.count(".")]) if folder.name not in _INSTALLED]
