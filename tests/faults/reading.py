"""Everything that reads a file of a store, an archive, a policy, a specification or a checkpoint, for hostile files.

`attack` gives a reader seeded mutations of a valid file. A reader may return something or raise a `BenchError` with one
line; it must not raise anything else, wait, fill the memory, or execute what the file says.
"""

import io
import json
import math
import os
import random
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.compression.policy import load_policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.accelerator.hardware import read_hardware
from bench.costs.breakdown import breakdown
from bench.costs.budget import parse_budget
from bench.errors import BenchError
from bench.export.executor import PackedNetwork
from bench.export.importing.files import read_network_file
from bench.export.packed import _safetensors, packed_network
from bench.inputs.reading import file_hash
from bench.planning.networks import model_shape
from bench.plugins.registry import load
from bench.reporting.cost_tables import table
from bench.reporting.mlflow.folders import StudyFolders
from bench.reporting.report import make_document
from bench.results.status import unit_states
from bench.results.tables import StudyResults
from bench.spec.schema import AcceleratorSpec
from bench.spec.sources import build, read_toml
from bench.store.archive import archive, restore
from bench.store.cleaning.cleanup import clean
from bench.store.cleaning.survey import survey
from bench.store.files import Store, load_state, read_checked, read_json, write_json
from bench.store.leases import Holder, Leases
from bench.training.checkpoints import Checkpoints, GeneratorState
from tests import fake_store
from tests.bench.costs.tables import write_table
from tests.bench.export.networks import Shifting, Tokens, sample
from tests.faults.mutations import mutated_bytes, mutated_json

MOST_MEMORY = 1 << 30
"""Bytes by which the peak memory of the process may rise while it reads hostile files."""
LONGEST_SECONDS = 120
"""Seconds after which a reader counts as one that waits for ever."""


@dataclass(frozen=True)
class Reader:
    """A reader and a valid file for it.

    Attributes:
        name: Name of the reader.
        prepare: Function that writes the valid file into a folder and returns its path.
        read: Function that reads the file.
        mutate: Function that returns the content of a mutated file, of the valid content.
        rest: Function that undoes what reading has changed; nothing by default.
    """

    name: str
    prepare: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutate: Callable[[Path, random.Random], bytes]


class TooLongError(Exception):
    """A reader does not come back."""


@contextmanager
def limited() -> Iterator[None]:
    """Stop a `with` block that does not end, and make sure that it needs little memory."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_SECONDS)
    peak = _peak()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _peak() - peak < MOST_MEMORY


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attack(reader: Reader, folder: Path, count: int, seed: int = 0) -> int:
    """Give a reader mutated files.

    Returns:
        Number of files that it refused.
    """
    path = reader.prepare(folder)
    valid, refused = path.with_name("valid"), 0
    shutil.copy(path, valid)
    reader.read(path)
    for number in range(count):
        content = reader.mutate(valid, random.Random(f"{reader.name} {seed} {number}"))  # noqa: S311
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            with limited():
                reader.read(path)
        except BenchError as error:
            refused += 1
            assert "\n" not in str(error), (number, str(error)[:300])
            str(error).encode()
        except BaseException as error:
            error.add_note(f"{reader.name}, seed {seed}, file {number}: {content[:400]!r}")
            raise
    assert not list(folder.rglob("executed"))
    return refused


# --- valid files --------------------------------------------------------------------------------------------------


def _store(folder: Path) -> Path:
    """Make a store with a small study that has everything."""
    fake = fake_store.two_done(folder / "store")
    tuning = fake.tuning("sbs", [0.2, 0.4])
    fake.run("sbs", 3, 72.0, tuning=tuning, knobs={"strength": 0.2})
    fake.run("dnas", 3, status="running")
    fake.run("fixed", 0, 69.0)
    document = fake.document(published="1", methods=["sbs", "dnas", "fixed"])
    row = {"model": "resnet8", "dataset": "digits", "method": "sbs", "budget": "4bit"}
    places = {run: {**row, "seed": 1} for run in fake.runs}
    extra = {"titles": dict.fromkeys(fake.runs, "a run"), "places": places, "one_stage": ["sbs"]}
    ablations = [{"key": "", "value": "", "runs": fake.runs[:3]}, {"key": "k", "value": "v", "runs": fake.runs[3:5]}]
    extra |= {"costliest": [{**row, "cost": 4e7}], "ablations": ablations}
    fake_store.write_checked(fake.store.study("quick") / "study.json", document | extra)
    return fake.root


def _root(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "studies").is_dir())


def _unit_file(name: str) -> Callable[[Path], Path]:
    return lambda folder: _store(folder) / name


def _lease(folder: Path) -> Path:
    path = _store(folder) / "leases" / "runs-dnas-4bit-3.json"
    document = {"name": "runs-dnas-4bit-3", "token": "t", "holder": Holder.this().to_json(), "beat": 9, "time": "now"}
    write_json(path, document | {"title": "work", "progress": {"phase": "search", "epoch": 1, "epochs": 2, "done": 3}})
    return path


def _archive(folder: Path) -> Path:
    _store(folder)
    archive(Store(folder / "store"), "quick", folder / "quick.tar.gz")
    return folder / "quick.tar.gz"


def _policy(folder: Path) -> Path:
    write_json(folder / "policy.json", fake_store.POLICY)
    return folder / "policy.json"


@cache
def _network_shape() -> NetworkShape:
    return model_shape("resnet8", "digits")


def _times(folder: Path) -> Path:
    """Make a table of measured times."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "times.json", _network_shape())
    return folder / "times.json"


def _priced(path: Path) -> None:
    """Price a network by a table of measured times, in every way; what is accepted gives times."""
    network, accelerator = _network_shape(), AcceleratorSpec(hardware=str(path), batch=1)
    priced = breakdown(accelerator, network, uniform(network, 4))
    table(priced, "latency")
    assert math.isfinite(priced.total("latency") or 0.0)
    json.dumps(priced.to_json(), allow_nan=False)
    parse_budget("0.9x:ms", network, 0.03, accelerator)


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    return prepare


class _Executed:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def _state(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.arange(12.0).view(3, 4), "n": 1, "texts": ["a"]}, folder / "model.pt")
    return folder / "model.pt"


@cache
def _exported(form: str, kind: type[Shifting | Tokens]) -> bytes:
    """Return the file of a small network, with every kind of tensor."""
    torch.manual_seed(0)
    graph = sample(kind(), (3, 13, 11) if kind is Shifting else (3, 8, 8)).graph
    if form == "packed":
        return packed_network(graph)
    from bench.export.onnx_forms.integer import IntegerForm

    return IntegerForm(graph).model().SerializeToString()


def _network(form: str, name: str, kind: type[Shifting | Tokens]) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_exported(form, kind))
        return folder / name

    return prepare


# --- what reads them ----------------------------------------------------------------------------------------------


def _every_view(path: Path) -> None:
    """Read a store in every way but the reports."""
    store = Store(_root(path))
    survey(store)
    study = store.load_study("quick")
    results = StudyResults(store, study)
    len(results.runs), len(results.lines)
    for unit in unit_states(store, study):
        f"{unit.title} {unit.state} {unit.reason}".encode()
        f"{unit.attempt:d} {0.0 if unit.top1 is None else unit.top1:.2f}".encode()
    for kind, identity in survey_units(study):
        store.damage(kind, identity, store.record(kind, identity) or {})
    folders = StudyFolders(store, study)
    units = folders.scan()
    for unit in units:
        folders.child(unit)


def survey_units(study: Any) -> list[Any]:
    """List the units of a study."""
    from bench.store.contents import units_of

    return sorted(units_of(study))


def _every_report(path: Path) -> None:
    """Make every report of a store in every form."""
    store = Store(_root(path))
    document = make_document(StudyResults(store, store.load_study("quick")))
    for name in ("terminal", "markdown", "latex", "csv"):
        load("forms", name).render(document, 100).encode()
    for figure in document.figures:
        figure.draw()


def _restored(path: Path) -> None:
    """Restore an archive into an empty store, read it, and clean the store."""
    target = path.parent / "target"
    shutil.rmtree(target, ignore_errors=True)
    try:
        restore(Store(target), path)
        _every_view(target / "studies" / "quick" / "study.json")
        clean(Store(target), "quick")
    finally:
        assert not [
            found for found in path.parent.iterdir() if found.name not in ("store", "target", "valid", path.name)
        ]


def _executed(path: Path) -> None:
    """Read an exported network, price it, and execute what was accepted: the file itself, and the module."""
    file = read_network_file(path)
    breakdown(AcceleratorSpec(), file.shape, file.policy)
    images = np.random.default_rng(0).integers(0, 256, (1, *file.graph.image_shape), dtype=np.uint8)
    engine, _ = file.engines()[0]
    with np.errstate(all="ignore"):
        engine.logits(images)
    with torch.no_grad():
        file.network(torch.from_numpy(images).float())


def _checkpoint(path: Path) -> None:
    """Restore a checkpoint whose name has the right checksum."""
    name = f"search.000001.{file_hash(path)[:16]}.pt"
    shutil.copy(path, path.with_name(name))
    try:
        Checkpoints(path.parent, {}).restore("search", {"weight": _Anything()})
    finally:
        path.with_name(name).unlink()


class _Anything(GeneratorState):
    def __init__(self) -> None:
        super().__init__(torch.Generator())


def _lease_view(path: Path) -> None:
    leases = Leases(_root(path))
    for view in leases.all():
        leases.is_dead(view), leases.age(view)
    _every_view(path)


# --- mutations ----------------------------------------------------------------------------------------------------


def _of_json(valid: Path, draw: random.Random) -> bytes:
    return mutated_json(read_json(valid), draw)


def _of_bytes(valid: Path, draw: random.Random) -> bytes:
    return mutated_bytes(valid.read_bytes(), draw)


def _of_state(valid: Path, draw: random.Random) -> bytes:
    """Damage a checkpoint, or make one that holds something else, runs code, or unpacks to more than it has."""
    kind = draw.randrange(6)
    if kind > 2:
        return mutated_bytes(valid.read_bytes(), draw)
    buffer = io.BytesIO()
    if kind == 0:
        torch.save({"weight": _Executed(valid.with_name("executed"))}, buffer)
        return buffer.getvalue()
    if kind == 1:
        torch.save(draw.choice([[1], 5, None, "x", {"weight": {"state": 1}}, {1: 2}]), buffer)
        return mutated_bytes(buffer.getvalue(), draw) if draw.random() < 0.5 else buffer.getvalue()
    return _repacked(valid, draw)


def _repacked(valid: Path, draw: random.Random) -> bytes:
    """Change the files inside a checkpoint, so that its checksums fit."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(valid) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if draw.random() < 0.4:
                content = mutated_bytes(content, draw)
            packed = draw.random() < 0.1
            content = b"\0" * (1 << 22) if packed else content
            target.writestr(entry.filename, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return buffer.getvalue()


def _of_archive(valid: Path, draw: random.Random) -> bytes:
    """Damage an archive, or mutate its documents and write a manifest that fits."""
    import gzip
    import hashlib

    kind = draw.randrange(4)
    if kind == 0:
        return mutated_bytes(valid.read_bytes(), draw)
    if kind == 1:
        return gzip.compress(mutated_bytes(gzip.decompress(valid.read_bytes()), draw), 1)
    with tarfile.open(valid) as tar:
        files = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    names = sorted(name for name in files if name.endswith(".json") and name != "MANIFEST.json")
    for name in draw.sample(names, 2):
        path = valid.with_name("target")
        files[name] = _of_content(files[name], path, draw)
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name != "MANIFEST.json"
    }
    manifest = {"format": 1, "project": "sbs-bench", "version": "0", "study": "quick", "files": listed}
    files["MANIFEST.json"] = mutated_json(manifest, draw) if draw.random() < 0.2 else _dumped(manifest)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _of_packed(valid: Path, draw: random.Random) -> bytes:
    content = valid.read_bytes()
    kind = draw.randrange(4)
    if kind == 0:
        return mutated_bytes(content, draw)
    if kind == 1:
        length = int.from_bytes(content[:8], "little")
        header = mutated_json(json.loads(content[8 : 8 + length]), draw)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    tensors = dict(PackedNetwork(content).tensors)
    name = "program" if kind == 2 else draw.choice(sorted(tensors))
    values = tensors[name]
    if name == "program":
        values = np.frombuffer(mutated_json(json.loads(values.tobytes()), draw), dtype=np.uint8)
    else:
        values = np.frombuffer(
            mutated_bytes(values.tobytes(), draw)[: values.nbytes].ljust(values.nbytes), values.dtype
        )
    return _safetensors({**tensors, name: values}, {"format": "packed network"})


def _of_onnx(valid: Path, draw: random.Random) -> bytes:
    import onnx

    content = valid.read_bytes()
    kind = draw.randrange(5)
    if kind == 0:
        return mutated_bytes(content, draw)
    model = onnx.ModelProto.FromString(content)
    (program,) = model.metadata_props
    node, constant = draw.choice(model.graph.node), draw.choice(model.graph.initializer)
    if kind == 1:
        program.value = mutated_json(json.loads(program.value), draw).decode(errors="replace")
    elif kind == 2:
        constant.raw_data = mutated_bytes(constant.raw_data, draw)
    elif kind == 3:
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value=draw.choice(("/etc/passwd", "../secret", "network.onnx")))
    else:
        node.op_type = draw.choice(("If", "Loop", "Identity", "Conv", "Quant", ""))
        node.domain = draw.choice(("", "", "com.microsoft", "../x"))
    made: bytes = model.SerializeToString()
    return made


def _dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def _of_content(content: bytes, scratch: Path, draw: random.Random) -> bytes:
    try:
        return mutated_json(json.loads(content), draw)
    except ValueError:
        return mutated_bytes(content, draw)


_HAS_ONNX = all(map(find_spec, ("onnx", "onnxruntime")))
_SPECIFICATION = (
    'name = "s"\nmethods = ["fixed", "sbs"]\nseeds = [0, 1]\n[task]\nmodel = "resnet8"\n[search]\nlr = 1e-3\n'
)
_HARDWARE = (Path(__file__).parents[2] / "bench/costs/accelerator/configurations/bf_e.toml").read_text()

_RECORD = "runs/sbs-4bit-0/record.json"
READERS = (
    Reader("json", _unit_file(_RECORD), lambda path: (read_json(path), read_checked(path)), _of_json),
    Reader("record", _unit_file(_RECORD), _every_view, _of_json),
    Reader("tuning", _unit_file("tuning/tuning-sbs-4bit/record.json"), _every_view, _of_json),
    Reader("trial record", _unit_file("tuning/tuning-sbs-4bit/trials/0/record.json"), _every_view, _of_json),
    Reader("study", _unit_file("studies/quick/study.json"), _every_view, _of_json),
    Reader("lease", _lease, _lease_view, _of_json),
    Reader("reports of a record", _unit_file(_RECORD), _every_report, _of_json),
    Reader("reports of a study", _unit_file("studies/quick/study.json"), _every_report, _of_json),
    Reader("reports of curves", _unit_file("runs/sbs-4bit-0/curves.json"), _every_report, _of_json),
    Reader("reports of a policy", _unit_file("runs/sbs-4bit-0/policy.json"), _every_report, _of_json),
    Reader("reports of a trial", _unit_file("tuning/tuning-sbs-4bit/trials/0/trial.json"), _every_report, _of_json),
    Reader("archive", _archive, _restored, _of_archive),
    Reader("policy", _policy, load_policy, _of_json),
    Reader("specification", _text("s.toml", _SPECIFICATION), lambda path: build([read_toml(path)]), _of_bytes),
    Reader("hardware", _text("h.toml", _HARDWARE), read_hardware, _of_bytes),
    Reader("measured times", _times, _priced, _of_json),
    Reader("state", _state, load_state, _of_state),
    Reader("checkpoint", _state, _checkpoint, _of_state),
    Reader("packed network", _network("packed", "network.safetensors", Shifting), _executed, _of_packed),
    Reader("packed transformer", _network("packed", "network.safetensors", Tokens), _executed, _of_packed),
    *([Reader("onnx network", _network("onnx", "network.onnx", Tokens), _executed, _of_onnx)] if _HAS_ONNX else []),
)
"""Every reader, each with a valid file and mutations of it."""
