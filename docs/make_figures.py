"""Draw the documentation's figures with the project's own code: `.venv/bin/python docs/make_figures.py`."""

from pathlib import Path

from bench.reporting.charts import save
from bench.reporting.report import Figure
from methods.checks import regression, theorem

_FOLDER = Path(__file__).resolve().parent / "figures"


def main() -> None:
    """Draw what `bench verify --out` draws into `docs/figures`, the same bytes every time."""
    for check in (theorem.checks, regression.checks):
        for result in check():
            if isinstance(result, Figure):
                path = save(result.draw(), _FOLDER / f"{result.name}.svg")
                print(f"{path.name}: {path.stat().st_size // 1024} KB")  # noqa: T201


if __name__ == "__main__":
    main()
