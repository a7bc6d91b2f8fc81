"""Measured times of networks: the float network, its reduced form without quantization, and exported forms, in turns.

All run on one thread. A round times each of them once, one after the other, so that whatever slows the machine down
meets all of them. Figures are medians over the rounds, and quartiles of the ratio to the float network of the same
round and engine. Times say what this machine does. They belong to no budget and no identity.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.compression.policy import Policy
from bench.export.engines import Engine
from bench.export.forms import fast_engines, form_named, network_file, require
from bench.export.graph.operations import Graph
from bench.export.untrained import UntrainedNetwork

FLOAT, REDUCED = "float", "reduced float"
"""Names of the full float network, and of the float network with the kept filters."""
MEASURED = ("onnx", "onnx-qdq")
"""Forms that runtimes execute; the executors of others show what they mean, and are not made to be fast."""
BATCHES = (1, 16)
"""Numbers of images that are computed together."""
Name = TypeVar("Name")
ROUNDS = 20
_LEAST_SECONDS = 0.02
"""Least time of one measurement, in which short calls are repeated."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTime:
    """Measured time of a network in an engine.

    Attributes:
        form: Form of the network, `FLOAT` or `REDUCED`.
        engine, version: Engine.
        batch: Images that were computed together.
        milliseconds: Median time for one batch.
        ratio: Quartiles of the ratio to the float network: first, median, third.
    """

    form: str
    engine: str
    version: str
    batch: int
    milliseconds: float
    ratio: tuple[float, float, float]


def measured_cost(graph: Graph, full: Graph, files: Mapping[str, bytes]) -> list[MeasuredTime]:
    """Measure the ONNX forms of a network beside the float networks, in every runtime that is installed.

    Args:
        graph: Graph of the network.
        full: Graph of the network with all filters.
        files: ONNX files by form.
    """
    from bench.export.onnx_forms.float import FloatForm

    contents = {
        FLOAT: FloatForm(full).model().SerializeToString(),
        REDUCED: FloatForm(graph).model().SerializeToString(),
        **files,
    }
    draw = np.random.default_rng(0)
    times: list[MeasuredTime] = []
    for make in fast_engines():
        engines = {form: make(content, ()) for form, content in contents.items()}
        for batch in BATCHES:
            images = draw.integers(0, 256, (batch, *graph.image_shape), dtype=np.uint8)
            times += _measured(engines, images)
    return times


def measured_policy(network: UntrainedNetwork, policy: Policy) -> list[MeasuredTime]:
    """Measure the network of a policy in all forms that are measured, with random weights.

    Raises:
        BenchError: Packages are missing, or the network cannot be exported.
    """
    require(("onnx", "onnxruntime"), "measuring times")
    graph = network.graph(policy)
    files = {name: network_file(form_named(name).files(graph)) for name in MEASURED}
    return measured_cost(graph, network.full_graph(policy), files)


def _measured(engines: Mapping[str, Engine], images: NDArray[np.uint8]) -> list[MeasuredTime]:
    seconds = in_turns({form: partial(engine.logits, images) for form, engine in engines.items()}, ROUNDS)
    made = []
    for form, engine in engines.items():
        first, middle, third = np.quantile(seconds[form] / seconds[FLOAT], (0.25, 0.5, 0.75)).tolist()
        made.append(
            MeasuredTime(
                form=form,
                engine=engine.name,
                version=engine.version,
                batch=len(images),
                milliseconds=1000 * float(np.median(seconds[form])),
                ratio=(first, middle, third),
            )
        )
    return made


def in_turns(
    calls: Mapping[Name, Callable[[], Any]], rounds: int, least_seconds: float = _LEAST_SECONDS
) -> dict[Name, NDArray[np.float64]]:
    """Time calls in turns, by the processor's time of this process.

    Args:
        calls: Functions by name; each is called before.
        rounds: Number of rounds.
        least_seconds: Least time of one measurement, in which short calls are repeated.

    Returns:
        Seconds of one call in each round, by name.
    """
    repeats = {name: max(1, round(least_seconds / max(_timed(call, 2), 1e-6))) for name, call in calls.items()}
    rows = [{name: _timed(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: np.array([row[name] for row in rows]) for name in calls}


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of one call, on the processor: waiting for other processes does not count."""
    began = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - began) / repeats
