"""What MLflow shows of exported networks: metrics and artifacts of the runs."""

from pathlib import Path
from typing import Any

from bench.reporting.mlflow.tracker import Tracker
from bench.store.files import write_bytes, write_checked
from tests.bench.reporting.mlflow.reading import by_name
from tests.reports.test_deployment import document


def export(root: Path, run: str, *, equal: int = 97, elsewhere: bool = False) -> None:
    """Write what `bench export --measure` leaves in a store; with --out, the document alone."""
    folder = root / "exports" / run
    made = document(run, 120_000, equal, measured=True)
    made["forms"]["packed"]["files"] = {"network.safetensors": 120_000, "executor.py": 9, "../../../secret": 1}
    write_checked(folder / "export.json", made)
    if not elsewhere:
        write_bytes(folder / "network.safetensors", b"codes")
        write_bytes(folder / "executor.py", b"import numpy")
        write_bytes(folder / "unrelated", b"not named by the document")
    write_bytes(root.parent / "secret", b"not of the store")


def synchronised(fake: Any) -> tuple[Any, Any]:
    """Update MLflow; return its two finished runs, and the counts of the update."""
    counts = Tracker(None, fake.root, patient=True).sync(fake.store, fake.document())
    runs = by_name(fake.root)
    return (runs["sbs 4bit seed 0"], runs["sbs 4bit seed 1"]), counts


def artifacts(fake: Any, run: Any) -> set[str]:
    folder = fake.root / "mlartifacts" / "quick" / run.info.run_id / "artifacts"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_an_export_is_sent_with_its_files(fake: Any) -> None:
    (before, _), _ = synchronised(fake)
    first = str(before.data.tags["bench.id"])
    export(fake.root, first)
    (exported, other), counts = synchronised(fake)
    assert (counts.added, counts.updated) == (0, 2)  # the run, and the page of policies of its method
    metrics = exported.data.metrics
    assert metrics["export.packed.kb"] == 120.0
    assert metrics["export.packed.equal_percent"] == 97.0  # in the engine with the fewest
    assert metrics["export.onnx-qdq.onnxruntime.batch1.ms"] == 1.6
    assert metrics["export.onnx-qdq.onnxruntime.batch1.ratio"] == 0.8
    assert metrics.keys() >= before.data.metrics.keys()
    assert artifacts(fake, exported) - artifacts(fake, other) == {"export.json", "network.safetensors", "executor.py"}
    assert not [key for key in other.data.metrics if key.startswith("export.")]


def test_an_export_is_sent_once_and_again_when_it_changes(fake: Any) -> None:
    first = str(synchronised(fake)[0][0].data.tags["bench.id"])
    export(fake.root, first, elsewhere=True)
    (once, _), _ = synchronised(fake)
    assert "export.json" in artifacts(fake, once) and "network.safetensors" not in artifacts(fake, once)
    (again, _), counts = synchronised(fake)
    assert (again.info.run_id, counts.updated) == (once.info.run_id, 0)
    export(fake.root, first, equal=100)
    (changed, _), counts = synchronised(fake)
    assert changed.data.metrics["export.packed.equal_percent"] == 100.0
    assert counts.updated == 2


def test_an_export_does_not_change_the_figures_of_its_method(fake: Any) -> None:
    (before, _), _ = synchronised(fake)
    means = by_name(fake.root)["sbs 4bit"].data.metrics
    export(fake.root, str(before.data.tags["bench.id"]))
    synchronised(fake)
    assert by_name(fake.root)["sbs 4bit"].data.metrics == means


def test_a_damaged_document_is_left_out(fake: Any) -> None:
    (before, _), _ = synchronised(fake)
    folder = fake.root / "exports" / str(before.data.tags["bench.id"])
    folder.mkdir(parents=True)
    (folder / "export.json").write_text("{")
    (after, _), counts = synchronised(fake)
    assert counts.updated == 0
    assert after.data.metrics == before.data.metrics
