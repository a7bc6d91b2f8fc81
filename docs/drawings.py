"""What drew the published figures, and whether the same code would draw them today.

The scripts that draw figures note in `docs/figures/drawn.json` for each file what drew it, and a fingerprint of that:

* a report, with the charts that it makes of two small made-up studies. So a rewording or a move of code changes
  nothing, and whatever changes a chart does. The figures of a study need not be drawn again to find this out, for
  which its runs would have to be there;
* or source files: the syntax of Python modules, and the bytes of other files.

A test compares the fingerprints with those of today. A figure without a fingerprint was drawn before this was noted;
its runs are not kept.
"""

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.plugins.source_hash import hash_sources
from bench.reporting.report import Document, make_document
from bench.results.tables import StudyResults

DOCS = Path(__file__).resolve().parent
NOTES = DOCS / "figures" / "drawn.json"
_COUNTED = re.compile(r"\b(view|param|concat|layer)_?\d+")
"""Names that the charts' library counts up in a process."""


def figures() -> list[str]:
    """Return all published figures: paths below `docs`."""
    found = [*DOCS.glob("figures/*.svg"), *DOCS.glob("figures/*.png"), *DOCS.glob("results/*/*.svg")]
    return sorted(path.relative_to(DOCS).as_posix() for path in found)


def noted() -> dict[str, dict[str, str | None]]:
    """Return what drew each figure (`by`), and its fingerprint (`drawing`)."""
    notes: dict[str, dict[str, str | None]] = json.loads(NOTES.read_text())
    return notes


def note(drawn: Mapping[Path, str], fingerprints: Mapping[str, str]) -> None:
    """Note what drew figures, and forget figures that are gone.

    Args:
        drawn: Name of what drew each figure.
        fingerprints: Fingerprints by these names.
    """
    notes = noted()
    for path, by in drawn.items():
        notes[path.resolve().relative_to(DOCS).as_posix()] = {"by": by, "drawing": fingerprints[by]}
    kept = {name: notes[name] for name in sorted(notes) if (DOCS / name).exists()}
    NOTES.write_text(json.dumps(kept, indent=1) + "\n")


def of_sources(*paths: Path) -> str:
    """Return the fingerprint of source files: the syntax of modules, the bytes of others."""
    modules = {path.stem: path.read_bytes() for path in paths if path.suffix == ".py"}
    others = [path for path in sorted(paths) if path.suffix != ".py"]
    digest = hashlib.sha256(hash_sources(modules, own=("bench",)).encode())
    for path in others:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def of_reports() -> dict[str, str]:
    """Return the fingerprint of each report that draws: of its charts of two made-up studies."""
    sys.path.insert(0, str(DOCS.parent))
    from tests import fake_store

    charts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, fill in enumerate((fake_store.mixed, _two_budgets)):
            fake = fill(Path(folder) / str(number))
            for name, chart in _charts(make_document(StudyResults(fake.store, fake.document()))):
                charts.setdefault(name, []).append(chart)
    return {name: hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] for name, drawn in charts.items()}


def _two_budgets(root: Path) -> Any:
    """Make a study of three methods at two budgets."""
    from tests.fake_store import FakeStore

    budgets = {"2bit": 60.0, "4bit": 70.0}
    fake = FakeStore(root, spec={"methods": ["fixed", "sbs", "dnas"], "budgets": list(budgets)})
    for budget, top1 in budgets.items():
        for rank, method in enumerate(("fixed", "sbs", "dnas")):
            tuning = fake.tuning(method, [0.2, 0.4], budget=budget) if rank else None
            for seed in range(3):
                fake.run(method, seed, top1 + rank + 0.3 * seed, budget=budget, tuning=tuning)
    return fake


def _charts(document: Document) -> Iterable[tuple[str, str]]:
    """Yield the name of the report and the chart of each figure, as it is drawn into a file."""
    from bench.reporting.report import Figure

    for section in document.sections:
        for part in section.parts:
            if isinstance(part, Figure):
                chart = (part.still or part.draw)().to_dict()
                chart.pop("$schema", None)
                yield section.name, _without_counters(json.dumps([part.name, chart], sort_keys=True))


def _without_counters(chart: str) -> str:
    """Number the names that are counted up in a process by their order in one chart."""
    order: dict[str, str] = {}
    return _COUNTED.sub(lambda found: order.setdefault(found[0], f"{found[1]}_{len(order)}"), chart)
