"""The deployment report, from made-up documents of exports."""

from pathlib import Path
from typing import Any

from bench.results.tables import StudyResults
from bench.store.files import write_checked
from reports.deployment import Deployment
from tests import fake_store
from tests.reports.reading import figures_of, records, rows_in, table_of


def document(run: str, size: int, equal: int, *, measured: bool = False) -> dict[str, Any]:
    """A document with one form, executed by two engines."""

    def agreement(engine: str, same: int) -> dict[str, Any]:
        return {"engine": engine, "images": 100, "equal": same, "traced": 100 - same, "broken": False}

    def time(form: str, ratio: float) -> dict[str, Any]:
        spread = [0.9 * ratio, ratio, 1.1 * ratio]
        common = {"engine": "onnxruntime", "version": "1", "batch": 1}
        return {"form": form, **common, "milliseconds": 2 * ratio, "ratio": spread}

    return {
        "run": run,
        "counted": {
            "bops": 40e6,
            "full_precision_bops": 2560e6,
            "float_parameter_bytes": 1_000_000,
            "simulated_latency_ms": 0.5,
        },
        "forms": {"packed": {"files": {"n": size, "e": 9}, "agreements": [agreement("a", 100), agreement("b", equal)]}},
        "measured": [time("float", 1.0), time("onnx-qdq", 0.8)] if measured else [],
    }


def exported(tmp_path: Path, *, measured: bool = False) -> Any:
    """A study with two exported runs of a method, and one of another that was not exported."""
    fake = fake_store.FakeStore(tmp_path)
    runs = [fake.run("sbs", seed, 70.0) for seed in (0, 1)]
    fake.run("fixed", 0, 69.0)
    for run, size, equal in zip(runs, (100_000, 140_000), (100, 97), strict=True):
        write_checked(tmp_path / "exports" / run / "export.json", document(run, size, equal, measured=measured))
    return fake


def test_sizes_and_agreement(tmp_path: Path) -> None:
    (row,) = records(table_of(Deployment(), exported(tmp_path), "deployment"))
    assert (row["Method"], row["Budget"], row["Form"], row["n"]) == ("sbs", "4bit", "packed", "2")
    assert (row["File KB"], row["Float ×"], row["Equal"], row["Near ties"]) == ("120.0", "8.3", "197/200", "3")
    assert (row["BOPs ×"], row["Simulated ms"]) == ("64.0", "0.5000")


def test_measured_ratios_are_shown_beside_the_counted_one(tmp_path: Path) -> None:
    fake = exported(tmp_path, measured=True)
    rows = records(table_of(Deployment(), fake, "deployment_times"))
    assert [(row["Form"], row["ms"], row["Time ×"], row["Quartiles"], row["BOPs ×"]) for row in rows] == [
        ("float", "2.000", "1.00", "0.90–1.10", "0.0156"),
        ("onnx-qdq", "1.600", "0.80", "0.72–0.88", "0.0156"),
    ]
    assert table_of(Deployment(), fake, "deployment_times").headline == (
        "These networks count 64 to 64 times fewer bit operations than the float network; the fastest form of each "
        "takes 0.80 to 0.80 times as long in the same engine.",
    )
    points = rows_in(figures_of(Deployment(), fake)["deployment_ratios"], "form")
    assert {(point["form"], point["ratio"], point["bops"]) for point in points} == {("onnx-qdq", 0.8, 40 / 2560)}


def test_without_exports_there_is_nothing_to_show(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    run = fake.run("sbs", 0, 70.0)
    folder = tmp_path / "exports" / run
    folder.mkdir(parents=True)
    (folder / "export.json").write_text('{"run": "sbs"}')  # damaged
    assert Deployment().build(StudyResults(fake.store, fake.document())) == []
