"""All reports together: their order, damaged files, and the examples of the documentation."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting import report as bench_report
from bench.reporting.report import make_document
from tests import fake_store
from tests.reports.reading import ALL, results_of


def test_all_reports_are_declared_and_in_order(mixed: Any) -> None:
    assert set(ALL) <= set(available("reports"))
    document = make_document(results_of(mixed), ALL)
    assert [section.name for section in document.sections] == ALL


def test_a_study_of_which_nothing_is_there_yet(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.missing("a")
    document = make_document(results_of(fake))
    assert {"failures", "environment"} <= {section.name for section in document.sections}
    for name in available("forms"):
        assert isinstance(load("forms", name).render(document, 100), str)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"x"', '[{"phase": "search"}, 3]', '{"layers": 3}'])
def test_half_written_files_stop_no_report(tmp_path: Path, content: str) -> None:
    fake = fake_store.mixed(tmp_path)
    for path in [*tmp_path.glob("runs/*/*.json"), *tmp_path.glob("tuning/*/trials/*/trial.json")]:
        if path.name != "record.json":
            path.write_text(content)
    document = make_document(results_of(fake))
    assert {"comparison", "fairness", "provenance"} <= {section.name for section in document.sections}
    for figure in document.figures:
        figure.draw().to_dict()


def test_reports_import_no_torch(finished: Any) -> None:
    program = (
        "import sys; from pathlib import Path; from bench.store.files import Store\n"
        "from bench.results.tables import StudyResults\n"
        "from bench.reporting.report import make_document; from bench.plugins.registry import load\n"
        f"store = Store(Path({str(finished.store.root)!r}))\n"
        "document = make_document(StudyResults(store, store.load_study(None)))\n"
        "load('forms', 'html').render(document, 100); print(len(document.sections), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_every_form_names_every_figure(mixed: Any) -> None:
    document = make_document(results_of(mixed), ALL)
    assert len(document.figures) >= 5
    for figure in document.figures:
        assert f"Figure: {figure.title} ({figure.name}.svg" in load("forms", "terminal").render(document, 100)
        assert f"![{figure.title}]({figure.name}.svg)" in load("forms", "markdown").render(document, 100)
        assert f"{{{figure.name}.pdf}}" in load("forms", "latex").render(document, 100)


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    blocks = re.findall(r"(?m)^    (?:class|JSON) .*\n(?:(?:    .*)?\n)*?(?=\S|    \[)", text)
    names: dict[str, Any] = dict(vars(bench_report)) | {"json": json}
    for block in blocks:
        exec(textwrap.dedent(block), names)  # noqa: S102  (our own documentation)
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    table = names["Slowest"]().build(results_of(fake))[0]
    assert table.rows == (("fixed-4bit-0", "30"), ("fixed-4bit-1", "30"))
    document = make_document(results_of(fake), ["provenance"])
    assert list(json.loads(names["JSON"].render(document, 100))) == ["provenance"]
