"""Export of runs: files in several forms, verified on the test split, with a document that says how they agree."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.compression.policy import FULL_PRECISION_BITS, load_policy, uniform
from bench.costs.counter import price
from bench.errors import BenchError
from bench.export.forms import Files, Form, form_named, network_file
from bench.export.graph.operations import Graph
from bench.export.graph.reading import read_graph
from bench.export.measurement import MEASURED, measured_cost
from bench.export.packed import FILE, parts
from bench.export.rebuild import RebuiltRun, check_rebuilt, rebuild, runs_named
from bench.export.untrained import UntrainedNetwork
from bench.export.verification import Agreement, verify
from bench.outputs.commands import command
from bench.outputs.folders import require_writable
from bench.store.exports import DOCUMENT, FOLDER
from bench.store.files import Store, write_bytes, write_checked
from bench.store.machine import hardware, instructions, versions


@dataclass(frozen=True, kw_only=True)
class ExportedNetwork:
    """A network that was exported.

    Attributes:
        run: Id of the run.
        folder: Folder of the files.
        agreements: Comparisons of each form with the harness, by engine.
        document: Content of `export.json`.
    """

    run: str
    folder: Path
    agreements: tuple[Agreement, ...]
    document: Mapping[str, Any]

    @property
    def broken(self) -> tuple[Agreement, ...]:
        """Agreements that break a promise."""
        return tuple(agreement for agreement in self.agreements if agreement.broken)


@dataclass(kw_only=True)
class Exports:
    """Outcome of an export of several runs.

    Attributes:
        networks: Networks that were exported.
        refused: Reasons why others were not, by run.
        left_out: Runs with full precision, which have nothing to export.
    """

    networks: list[ExportedNetwork] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def export(
    name: str,
    forms: Sequence[str] = ("packed",),
    *,
    out: Path | str | None = None,
    store: Store | Path | str = "bench-store",
    data_dir: Path | str | None = None,
    measure: bool = False,
) -> Exports:
    """Export the networks of runs, and verify each on the test split.

    Args:
        name: A run, by the beginning of its id; STUDY/METHOD or STUDY/METHOD/BUDGET; a study; or a method of the latest
            study.
        forms: Forms: "packed", "onnx", "onnx-qdq", "qonnx".
        out: Folder that gets a folder for each run; `exports` in the store by default.
        store: Store of the runs, or its folder.
        data_dir: Folder of data sets.
        measure: Whether to measure how long the exported networks take.

    Returns:
        What was exported. Nothing is written of a run that is refused.

    Raises:
        BenchError: The name or a form is unknown, a needed package is missing, or the only run is refused.
    """
    chosen = [form_named(form) for form in dict.fromkeys(forms)]
    if measure and not any(form.name in MEASURED for form in chosen):
        raise BenchError("--measure times ONNX files; add onnx or onnx-qdq to --format, e.g. --format packed,onnx-qdq")
    place = store if isinstance(store, Store) else Store(Path(store))
    root = place.root / FOLDER if out is None else Path(out)
    runs = runs_named(place, name)
    if not runs:
        raise BenchError(f"'{name}' has no finished runs to export; see: {command('status', store=place.root)}")
    require_writable(root)
    exports = Exports()
    for run in runs:
        if len(runs) > 1 and _has_full_precision(place, run):
            exports.left_out.append(run)
            continue
        try:
            made = export_run(place, run, chosen, root / run, _path(data_dir), measure=measure)
        except BenchError as error:
            if len(runs) == 1:
                raise
            exports.refused[run] = str(error)
        else:
            exports.networks.append(made)
    return exports


def _path(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _has_full_precision(store: Store, run: str) -> bool:
    """Whether no layer of a run's network is quantized."""
    try:
        policy = load_policy(store.unit("runs", run) / "policy.json")
    except BenchError:
        return False
    return all(layer.weight_bits == layer.activation_bits == FULL_PRECISION_BITS for layer in policy.layers.values())


def export_run(
    store: Store, identity: str, forms: Sequence[Form], folder: Path, data_dir: Path | None = None, *, measure: bool
) -> ExportedNetwork:
    """Export the network of one run.

    Args:
        store: Store that has the run.
        identity: Whole id of the run.
        forms: Forms.
        folder: Folder of the files; made when missing.
        data_dir: Folder of data sets.
        measure: Whether to measure times.

    Raises:
        BenchError: The run cannot be rebuilt or exported, or the folder cannot be written; no file was written then.
    """
    run = rebuild(store, identity, data_dir)
    evaluation = check_rebuilt(run)
    graph = read_graph(run.network, run.task.data, model=run.policy.model, dataset=run.policy.dataset)
    files = {form.name: form.files(graph) for form in forms}
    engines = [
        (form.name, engine, promised) for form in forms for engine, promised in form.engines(files[form.name], graph)
    ]
    verification = verify(run.network, graph, run.task.data.test, engines)
    agreements = verification.agreements
    onnx_files = {name: network_file(made) for name, made in files.items() if name in MEASURED}
    times = measured_cost(graph, _full_graph(run), onnx_files) if measure else ()
    document = {
        **_about(run, evaluation.top1),
        "predictions": " ".join(map(str, verification.predictions)),
        "forms": {form.name: _entry(form, files[form.name], agreements) for form in forms},
        "measured": [asdict(measured) for measured in times],
    }
    _write(folder, files, document)
    if folder != store.root / FOLDER / identity:
        write_checked(store.root / FOLDER / identity / DOCUMENT, document)
    return ExportedNetwork(run=identity, folder=folder, agreements=tuple(agreements), document=document)


def _full_graph(run: RebuiltRun) -> Graph:
    return UntrainedNetwork(run.task.make_model(), run.task.network, run.task.data).full_graph(run.policy)


def _about(run: RebuiltRun, top1: float) -> dict[str, Any]:
    """Return what `export.json` says of the run, its costs, and the machine."""
    network, record = run.task.network, run.record
    cost = price(network, run.policy)
    return {
        "run": run.identity,
        **{key: record.get(key) for key in ("model", "dataset", "method", "budget", "seed")},
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "test_images": len(run.task.data.test),
        "recorded_top1": run.top1,
        "rebuilt_top1": top1,
        "counted": {
            "bops": cost.bops,
            "full_precision_bops": price(network, uniform(network, FULL_PRECISION_BITS)).bops,
            "memory_kb": cost.memory_kb,
            "weight_bits": sum(layer.weight_memory_bits for layer in cost.layers),
            "peak_activation_bits": max(layer.activation_memory_bits for layer in cost.layers),
            "float_parameter_bytes": sum(parameter.numel() for parameter in run.task.make_model().parameters()) * 4,
            "simulated_latency_ms": None if run.spec.accelerator.measured else record["metrics"].get("latency_ms"),
        },
        "versions": versions(),
        "machine": {**hardware(torch.device("cpu")), "instructions": instructions()},
    }


def _entry(form: Form, files: Files, agreements: Sequence[Agreement]) -> dict[str, Any]:
    """Return what `export.json` says of a form."""
    entry: dict[str, Any] = {
        "files": {name: len(content) for name, content in files.items()},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "limits": list(form.limits),
        "agreements": [agreement.to_json() for agreement in agreements if agreement.form == form.name],
    }
    if FILE in files:
        entry["parts"] = parts(files[FILE])
    return entry


def _write(folder: Path, files: Mapping[str, Files], document: Mapping[str, Any]) -> None:
    """Write all files, and the document last, so that a folder with a document is complete.

    Raises:
        BenchError: The folder cannot be written.
    """
    try:
        (folder / DOCUMENT).unlink(missing_ok=True)
        for form in files.values():
            for name, content in form.items():
                write_bytes(folder / name, content)
        write_checked(folder / DOCUMENT, document)
    except OSError as error:
        raise BenchError(
            f"cannot write to '{folder}': {error.strerror}; choose another folder with --out DIR"
        ) from error
