"""Print the lowest version of every range in `pyproject.toml`, as constraints for pip.

    python tests/lowest_versions.py > constraints.txt

`make test-oldest` installs these. The script needs nothing but Python, since it runs before anything is installed.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
_RANGE = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?>=(?P<lowest>[\w.]+)")


def lowest_versions(project: Path = _PROJECT) -> Iterator[str]:
    """Yield `name==version` for every requirement that states a lowest version, extras included.

    Args:
        project: Project file.
    """
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    for requirements in (table["dependencies"], *table["optional-dependencies"].values()):
        for requirement in requirements:
            if stated := _RANGE.match(requirement):
                yield f"{stated['name']}=={stated['lowest']}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lowest_versions())
