"""Write into `docs/tuning.md` how near the searches of a study came to their budgets, by method and mode.

    .venv/bin/python docs/make_matching.py STORE STUDY

The study is that of `docs/results/matching.toml`, or another with methods that search. The table replaces what stands
between `<!-- matching -->` and `<!-- end -->`.
"""

import sys
from pathlib import Path

import pandas as pd
from make_results import fill_in, markdown

from bench.reporting.report import Column, Document, Section, Table
from bench.results.fairness import FEW_REPAIRS
from bench.results.groups import with_result
from bench.results.tables import StudyResults
from bench.store.files import Store

PAGE = Path(__file__).resolve().parent / "tuning.md"


def table(results: StudyResults) -> Table:
    """Make one row for each method and mode."""
    runs = with_result(results.runs)
    runs = runs[runs["raw_cost"].notna() & runs["start_top1"].notna()]  # methods that search
    runs = runs.assign(base=runs["method"].map(_base), share=runs["raw_cost"] / runs["budget_cost"])
    budgets = list(results.study["spec"]["budgets"])
    columns = ("Method", "Mode", *budgets, "Landed", "Changed", "Top-1 %", "Searches")
    rows = [
        (str(base), str(mode), *_cells(group, budgets, len(group) + _trials(results, str(base), str(mode))))
        for (base, mode), group in runs.groupby(["base", "match"], sort=False)
    ]
    return Table(
        name="matching",
        title=f"{results.name}: raw costs as shares of the budget",
        columns=tuple(
            Column(title=title, align="left" if index < 2 else "right") for index, title in enumerate(columns)
        ),
        rows=tuple(sorted(rows, key=lambda row: (row[1], row[0]))),
        notes=(
            "Budgets: raw cost of the search, before repair, as a share of the budget; median over seeds.",
            f"Landed: searches after which repair changed at most {FEW_REPAIRS} choices.",
            "Changed: choices that repair changed, median over budgets and seeds.",
            "Top-1: mean over budgets and seeds.",
            "Searches: those of all runs, and before them those of the tuning.",
        ),
    )


def _cells(group: pd.DataFrame, budgets: list[str], searches: int) -> tuple[str, ...]:
    """Describe the runs of a method in a mode."""
    shares = group.groupby("budget")["share"].median()
    landed = int((group["repaired_gates"] <= FEW_REPAIRS).sum())
    return (
        *(f"{shares[budget]:.2f}" if budget in shares else "" for budget in budgets),
        f"{landed} of {len(group)}",
        f"{group['repaired_gates'].median():.0f}",
        f"{group['top1'].mean():.2f}",
        str(searches),
    )


def _trials(results: StudyResults, base: str, mode: str) -> int:
    """Count the trials of all tunings of a method in a mode, diverged ones too."""
    own = [each for each in results.tunings() if each["match"] == mode and _base(each["method"]) == base]
    return sum(int(each.get("trials_used") or 0) + int(each.get("trials_diverged") or 0) for each in own)


def _base(method: str) -> str:
    """Return the name of a method without the option that an ablation changed."""
    return method.partition("[")[0]


def main(arguments: list[str]) -> None:
    """Write the table of a study.

    Args:
        arguments: Folder of a store, and the name of a study in it.
    """
    store = Store(Path(arguments[0]))
    made = table(StudyResults(store, store.load_study(arguments[1])))
    section = Section(name="matching", title="", parts=(made,))
    fill_in("matching", markdown(Document(study="", sections=(section,))), [PAGE])


if __name__ == "__main__":
    main(sys.argv[1:])
