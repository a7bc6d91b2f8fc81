"""Rebuilding of the compressed network of a run from the files in its folder, checked against its record."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.compression.compress import compress, restore_state
from bench.compression.policy import Policy, check, load_policy
from bench.compression.quantizer import QuantizerFactory
from bench.errors import BenchError
from bench.execution.stages.finetuning import quantizer_name, quantizer_of
from bench.execution.task_loader import TaskLoader, on_device
from bench.export.importing.files import is_network_file, read_network_file
from bench.method import Task
from bench.outputs.commands import command, shell, study_command
from bench.planning.methods import method_of_study
from bench.results.groups import with_result
from bench.results.selection import select
from bench.spec.schema import StudySpec
from bench.store.files import Store, load_state, read_stored_specification
from bench.store.machine import hardware, versions
from bench.training.loop import Evaluation, evaluate

_ELSEWHERE_POINTS = 1.0
"""Largest difference in Top-1 that another processor, device or version of PyTorch explains."""


@dataclass(frozen=True, kw_only=True)
class RebuiltRun:
    """A run whose compressed network was rebuilt.

    Attributes:
        identity: Id of the run.
        record: Record of the run.
        spec: Specification of the run's study.
        policy: Final policy of the run.
        task: Data and float model of the run, on the CPU.
        network: The compressed network in evaluation mode. It reads normalised images.
    """

    identity: str
    record: Mapping[str, Any]
    spec: StudySpec
    policy: Policy
    task: Task
    network: nn.Module

    @property
    def top1(self) -> float:
        """Recorded Top-1 on the test split, in percent."""
        return float(self.record["metrics"]["top1"])


def rebuild(store: Store, identity: str, data_dir: Path | None = None) -> RebuiltRun:
    """Rebuild the compressed network of a finished run on the CPU.

    Args:
        store: Store that has the run.
        identity: Whole id of the run.
        data_dir: Folder of data sets.

    Raises:
        BenchError: The run has no network, its files are damaged, it was made before runs recorded how their weights
            are quantized, or its quantizer is another one now.
    """
    record = _checked_record(store, identity)
    folder = store.unit("runs", identity)
    stored = read_stored_specification(folder)
    if stored is None:
        raise BenchError(f"'{folder / 'spec.json'}' is missing or damaged; {_repeat(store, identity)}")
    spec = StudySpec.model_validate_json(json.dumps(stored["specification"]))
    quantizer = _same_quantizer(store, record, spec)
    task = TaskLoader(spec.model_copy(update={"device": "cpu"}), data_dir).task
    policy = load_policy(folder / "policy.json")
    check(task.network, policy)
    network = compress(
        task.make_model(),
        task.network,
        policy,
        quantizer=quantizer,
        normalized_weights=record["normalized_weights"],
    )
    try:
        restore_state(network, load_state(folder / "network.pt"))
    except RuntimeError as error:
        raise BenchError(
            f"'{folder / 'network.pt'}' does not fit the policy of the run; {_repeat(store, identity)}"
        ) from error
    network = on_device(network, task.device).eval()
    return RebuiltRun(identity=identity, record=record, spec=spec, policy=policy, task=task, network=network)


def _same_quantizer(store: Store, record: Mapping[str, Any], spec: StudySpec) -> QuantizerFactory:
    """Return the quantizer of a run's network.

    Raises:
        BenchError: It is not the recorded one.
    """
    method = str(record["method"])
    quantizer = quantizer_of(spec, method_of_study(spec, method))
    if quantizer_name(quantizer) != record["quantizer"]:
        raise BenchError(
            f"run {record['id']} was quantized by {record['quantizer']}, and {method} uses "
            f"{quantizer_name(quantizer)} now; {_repeat(store, record['id'])}"
        )
    return quantizer


def load_network(
    run: str | Path, store: Store | Path | str = "bench-store", data_dir: Path | str | None = None
) -> nn.Module:
    """Return the compressed network of a run, or of an exported file, as a plain module in evaluation mode, on the CPU.

    Args:
        run: A run, by the beginning of its id, or a name that stands for a single run; or the path of a file that
            `bench export` wrote, with the ending .safetensors or .onnx, which needs neither store nor data.
        store: Store of the run, or its folder.
        data_dir: Folder of data sets.

    Returns:
        The network. It reads images that are normalised as `TaskData.normalize` does. That of a run has exactly the
        recorded Top-1.

    Raises:
        BenchError: The name stands for no run or several, the run cannot be rebuilt, or the file cannot be read.
    """
    if is_network_file(str(run)):
        return read_network_file(Path(run)).network
    place = store if isinstance(store, Store) else Store(Path(store))
    runs = runs_named(place, str(run))
    if len(runs) != 1:
        raise BenchError(f"'{run}' stands for {len(runs)} finished runs; name one by its id: bench status")
    rebuilt = rebuild(place, runs[0], None if data_dir is None else Path(data_dir))
    check_rebuilt(rebuilt)
    return rebuilt.network


def runs_named(store: Store, name: str) -> list[str]:
    """Return the ids of the runs that a name stands for: those with a valid result, or a single run in any state.

    Raises:
        BenchError: Nothing has this name.
    """
    selected = select(store, name)
    return [selected.name] if selected.kind == "run" else [str(run) for run in with_result(selected.runs)["id"]]


def _checked_record(store: Store, identity: str) -> dict[str, Any]:
    record = store.record("runs", identity)
    if record is None or record.get("status") != "done":
        status = "has no record" if record is None else f"ended as '{record['status']}'"
        raise BenchError(f"run {identity} {status}, so it has no network; choose a finished one: bench status")
    damage = store.damage("runs", identity, record, thorough=True)
    if damage is None:
        needed = ("network.pt", "policy.json")
        damage = next((f"{name} is missing" for name in needed if name not in record["files"]), None)
    if damage is not None:
        raise BenchError(f"run {identity} is damaged: {damage}; {_repeat(store, identity)}")
    if record.get("normalized_weights") is None or record.get("quantizer") is None:
        raise BenchError(
            f"run {identity} was made before runs recorded how their weights are quantized, so its network cannot be "
            f"rebuilt; {_repeat(store, identity)}"
        )
    return record


def _repeat(store: Store, identity: str) -> str:
    """Return the command that repeats a run: it sets the folder aside, and runs the study again."""
    folder = store.unit("runs", identity)
    again = command("run", store=store.root)
    for name in reversed(store.studies()):
        with suppress(BenchError):  # the document of a study is damaged
            document = store.load_study(name)
            if identity in document["runs"]:
                again = study_command(document.get("command"), store.root) or again
                break
    return f"repeat it: {shell('mv', folder, f'{folder}.stale-0')} && {again}"


def check_rebuilt(run: RebuiltRun) -> Evaluation:
    """Evaluate a rebuilt network on the test split, and compare it with the record.

    Raises:
        BenchError: Top-1 is not the recorded one, although it was recorded on a machine like this one; or it differs by
            more than another machine can explain.
    """
    with _threads(run.spec.threads):
        evaluation = evaluate(run.network, run.task.data, run.task.data.test)
        same = _made_here(run.record)
    difference = abs(evaluation.top1 - run.top1)
    if difference > (0.0 if same else _ELSEWHERE_POINTS):
        raise BenchError(
            f"the rebuilt network of run {run.identity} has {evaluation.top1:.4f} % Top-1, and {run.top1:.4f} % was "
            "recorded; check that data and model are those of the run: bench doctor"
        )
    return evaluation


def _made_here(record: Mapping[str, Any]) -> bool:
    """Whether a run was made on such a machine as this one, by the same version of PyTorch."""
    made, here = dict(record.get("hardware") or {}), hardware(torch.device("cpu"))
    differing = {key for key in made.keys() | here.keys() if made.get(key) != here.get(key)}
    same_torch = (record.get("versions") or {}).get("torch") == versions()["torch"]
    return same_torch and differing <= {"threads", "cpus"}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads inside the block; sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
