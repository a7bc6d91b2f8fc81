"""List the packages of the project in `docs/architecture.md`: `.venv/bin/python docs/make_architecture.py`.

The levels come from `[tool.importlinter]` in `pyproject.toml`, the imports from the code, and what a package is for
from the first line of its docstring. The result replaces what stands between `<!-- packages -->` and
`<!-- end -->` in the page. `tests/test_architecture.py` fails when the page is not what this script would write.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"

_LEVELS = "A package imports from lower levels only"
"""Name of the contract in `pyproject.toml` that lists the levels."""
_CONTRACT = "A package imports from lower levels only"
_BLOCK = re.compile(r"(<!-- packages -->\n).*?(<!-- end -->)", re.DOTALL)

Levels = Sequence[tuple[str, ...]]
"""Packages by level, the lowest level first."""


def levels() -> Levels:
    """Return the packages that the contract of the levels names, the lowest level first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [contract for contract in settings["contracts"] if contract["name"] == _LEVELS]
    return [tuple(line.split(" | ")) for line in reversed(contract["layers"])]


def import_graph() -> grimp.ImportGraph:
    """Return every import of the project, those inside functions and those for types included."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return grimp.build_graph(*settings["root_packages"], cache_dir=None)


def package_of(module: str, packages: Sequence[str]) -> str | None:
    """Return the package with a level that a module belongs to, or `None` when it belongs to none."""
    return next((name for name in packages if module == name or module.startswith(f"{name}.")), None)


def package_imports(graph: grimp.ImportGraph, packages: Sequence[str]) -> dict[str, set[str]]:
    """Return the packages that each package imports."""
    found: dict[str, set[str]] = {name: set() for name in packages}
    for module in graph.modules:
        importer = package_of(module, packages)
        for imported in graph.find_modules_directly_imported_by(module):
            package = package_of(imported, packages)
            if importer and package and package != importer:
                found[importer].add(package)
    return found


def nearest_imports(imports: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return the packages that each package imports, without those that another of them imports too."""
    reached = {name: _reached(name, imports) for name in imports}
    return {
        name: sorted(targets - {further for target in targets for further in reached[target]})
        for name, targets in imports.items()
    }


def _reached(name: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Return all packages that a package imports, directly or through others; imports must have no circle."""
    direct = imports[name]
    return direct.union(*(_reached(target, imports) for target in direct))


def table(of_levels: Levels, imports: Mapping[str, set[str]], root: Path = ROOT) -> Iterator[str]:
    """Yield the lines of the table of packages, the highest level first."""
    imported = nearest_imports(imports)
    yield "| level | package | what it is for | imports | modules |"
    yield "| --: | --- | --- | --- | --- |"
    for level, names in reversed(list(enumerate(of_levels))):
        for name in names:
            purpose = summary(name, root).replace("|", "\\|")
            targets = ", ".join(target.removeprefix("bench.") for target in imported[name])
            yield f"| {level} | `{name}` | {purpose} | {targets} | {', '.join(_modules(name, root))} |"


def summary(name: str, root: Path = ROOT) -> str:
    """Return the first line of the docstring of a package or module."""
    path = root / Path(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]


def _modules(name: str, root: Path) -> list[str]:
    """Return what lies directly in a package: modules by name, packages with a slash."""
    folder = root / Path(*name.split("."))
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    return sorted(modules + packages)


def page(text: str) -> str:
    """Return the page with the table as the code has it now."""
    of_levels = levels()
    packages = [name for names in reversed(of_levels) for name in names]
    imports = package_imports(import_graph(), packages)
    lines = "\n".join(table(of_levels, imports))
    return _BLOCK.sub(lambda match: f"{match[1]}\n{lines}\n\n{match[2]}", text)


def main() -> None:
    """Write the table into the page."""
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
