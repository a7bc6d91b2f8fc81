"""Draw the documentation's figures with the project's own code: `.venv/bin/python docs/make_figures.py`."""

from pathlib import Path

import drawings

from bench.reporting import charts
from bench.reporting.charts import save
from bench.reporting.report import Figure
from methods.checks import regression, theorem

_FOLDER = Path(__file__).resolve().parent / "figures"
CHECKS = {"theorem": theorem, "regression": regression}
"""Modules that draw, by name."""


def fingerprints() -> dict[str, str]:
    """Return the fingerprint of what each module draws."""
    looks = Path(str(charts.__file__))
    return {name: drawings.of_sources(Path(str(module.__file__)), looks) for name, module in CHECKS.items()}


def main() -> None:
    """Draw what `bench verify --out` draws into `docs/figures`, the same bytes every time."""
    drawn = {}
    for name, module in CHECKS.items():
        for result in module.checks():
            if isinstance(result, Figure):
                path = save(result.draw(), _FOLDER / f"{result.name}.svg")
                drawn[path] = name
                print(f"{path.name}: {path.stat().st_size // 1024} KB")  # noqa: T201
    drawings.note(drawn, fingerprints())


if __name__ == "__main__":
    main()
