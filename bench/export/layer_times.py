"""Measuring of layers one by one: the table from which latency budgets on a runtime are priced.

A layer is executed as the form `onnx-qdq` has it, in a model with several copies whose results are added up, as in a
residual block. A second model has one copy; the difference is the time of the other copies, without what a call costs.
The runtime distinguishes three kinds of arithmetic: integers of 8 bits for weights of up to 7 bits; real numbers with
quantization before them for weights of 8 bits; and real numbers alone, at full precision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from bench.compression.policy import FULL_PRECISION_BITS, LayerPolicy, Policy
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.budget import number_of
from bench.costs.measured import FOLDER, Quartiles, is_free_input, is_free_output, layer_key
from bench.costs.relaxed import channel_counts
from bench.errors import BenchError
from bench.export.engines import Engine, OnnxruntimeEngine, OpenvinoEngine
from bench.export.forms import require
from bench.export.graph.operations import IMAGE, Add, Graph, Layer, Operation, Quantize
from bench.export.measurement import in_turns
from bench.export.untrained import UntrainedNetwork, untrained_network
from bench.planning.networks import described, task_network
from bench.spec.schema import ENGINES, StudySpec, canonical_hash
from bench.store.files import Store, read_checked, write_checked
from bench.store.machine import hardware, instructions

if TYPE_CHECKING:
    from bench.export.onnx_forms.form import OnnxForm

FORM = "onnx-qdq"
FLOAT, WIDE, NARROW = (FULL_PRECISION_BITS, FULL_PRECISION_BITS), (8, 8), (7, 8)
"""Highest bits of weights and inputs of each kind of arithmetic."""
ROUNDS = 20
COPIES = 5
_LEAST_SECONDS = 0.01
_CHANNEL_COUNTS = 5
"""Largest number of channel counts of a layer; those of searches are these and the ones half-way between."""
_ENGINES: Mapping[str, Callable[[bytes, Sequence[Quantize]], Engine]] = {
    "onnxruntime": OnnxruntimeEngine,
    "openvino": OpenvinoEngine,
}

Level = tuple[int, int]
Report = Callable[[str], None]


def with_measured_times(spec: StudySpec, store: Store, report: Report) -> StudySpec:
    """Put a table of measured times in the place of the name of a runtime, if that is the hardware of a study.

    Args:
        spec: Specification of a study, with the number of classes.
        store: Store that keeps tables.
        report: Function that shows a line on what is measured.

    Raises:
        BenchError: The runtime is not installed, a network cannot be exported, or a budget is not understood.
    """
    if spec.accelerator.hardware not in ENGINES:
        return spec
    for text in spec.budgets:
        if not number_of(text):
            raise BenchError(f"budget '{text}' must be above 0, e.g. '0.9x:ms@{spec.accelerator.hardware}'")
    tasks = [spec.task.model_copy(update={"model": model}) for model in (spec.task.model, *spec.further_models)]
    networks = [untrained_network(task_network(task), described(task)) for task in tasks]
    path = measured_times(spec.accelerator.hardware, networks, spec.accelerator.batch, store, report)
    return spec.model_copy(update={"accelerator": spec.accelerator.model_copy(update={"hardware": str(path)})})


def measured_times(engine: str, networks: Sequence[UntrainedNetwork], batch: int, store: Store, report: Report) -> Path:
    """Return the file of the times of networks' layers on this machine; they are measured if the store has none.

    Args:
        engine: Runtime, one of `ENGINES`.
        networks: Networks.
        batch: Images that are computed together.
        store: Store that keeps tables.
        report: Function that shows a line on what is measured.

    Raises:
        BenchError: The runtime is not installed, a network multiplies activations or cannot be exported, or the store
            cannot be written.
    """
    require(("onnx", engine), f"measuring with {engine}")
    for network in networks:
        _check_measurable(network.shape)
    about = _about(engine, networks, batch)
    path = (store.root / FOLDER / canonical_hash(about) / f"{engine}.json").absolute()
    if read_checked(path) is not None:
        return path
    subjects = [_Subject.of(network) for network in networks]
    shapes = {layer_key(layer): (subject, layer) for subject in subjects for layer in subject.shape.layers}
    report(f"measuring {len(shapes)} kinds of layers with {engine}, once on this machine; kept as {path}")
    bench = _Bench(_ENGINES[engine], batch)
    layers = [_measured_layer(bench, key, *place) for key, place in shapes.items()]
    floats = {entry["layer"]: entry["levels"][0]["ms"][-1][-1][1] for entry in layers}
    document = {
        **about,
        "networks": [_measured_network(bench, subject, floats) for subject in subjects],
        "layers": layers,
    }
    store.prepare()
    write_checked(path, document)
    return path


def _check_measurable(network: NetworkShape) -> None:
    """Make sure that all that a network multiplies are layers.

    Raises:
        BenchError: It multiplies activations.
    """
    others = [layer.name for layer in network.layers if layer.kind == "matmul"]
    others += [operation.label for operation in network.unquantized]
    if others:
        raise BenchError(
            f"the layers of '{network.model}' are not measured: '{others[0]}' multiplies activations; give a budget of "
            "BOPs or of memory, e.g. '4bit' or '395KB'"
        )


def _about(engine: str, networks: Sequence[UntrainedNetwork], batch: int) -> dict[str, Any]:
    """Return what decides whether a table can be used again."""
    from importlib.metadata import version

    machine = {key: value for key, value in hardware(torch.device("cpu")).items() if key not in ("threads", "device")}
    return {
        "engine": engine,
        "version": version(engine),
        "form": FORM,
        "batch": batch,
        "machine": {**machine, "instructions": instructions()},
        "measured": [[network.shape.model, network.shape.dataset, _keys(network.shape)] for network in networks],
    }


def _keys(network: NetworkShape) -> list[str]:
    return [layer_key(layer) for layer in network.layers]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A network that is measured: its shapes, and its graph at each kind of arithmetic."""

    shape: NetworkShape
    graphs: Mapping[Level, Graph]

    @classmethod
    def of(cls, network: UntrainedNetwork) -> Self:
        made = {level: network.graph(_policy(network.shape, level)) for level in (WIDE, NARROW)}
        return cls(shape=network.shape, graphs={**made, FLOAT: made[WIDE]})


def _policy(network: NetworkShape, level: Level) -> Policy:
    """Return the policy with the same bits in all layers."""
    layer = LayerPolicy(weight_bits=level[0], activation_bits=level[1])
    names = [shape.name for shape in network.layers]
    return Policy(model=network.model, dataset=network.dataset, layers=dict.fromkeys(names, layer))


class _Bench:
    """A runtime, and the number of images that it computes together."""

    def __init__(self, make: Callable[[bytes, Sequence[Quantize]], Engine], batch: int) -> None:
        self._make, self._batch = make, batch

    def seconds(self, models: Mapping[Any, bytes], images: NDArray[Any]) -> dict[Any, NDArray[np.float64]]:
        """Time models in turns; the result are seconds for one image in each round."""
        engines = {name: self._make(content, ()) for name, content in models.items()}
        calls = {name: partial(engine.logits, images) for name, engine in engines.items()}
        return {name: taken / self._batch for name, taken in in_turns(calls, ROUNDS, _LEAST_SECONDS).items()}

    def inputs(self, shape: Sequence[int], *, pixels: bool) -> NDArray[Any]:
        """Draw a batch of inputs of a layer, or of images."""
        draw = np.random.default_rng(0)
        if pixels:
            return draw.integers(0, 256, (self._batch, *shape), dtype=np.uint8)
        return draw.random((self._batch, *shape), dtype=np.float32)


# --- layers -------------------------------------------------------------------------------------------------------


def _measured_layer(bench: _Bench, key: str, subject: _Subject, layer: LayerShape) -> dict[str, Any]:
    """Measure the layers of one shape at all kinds of arithmetic and at some numbers of channels."""
    counts = [
        channel_counts(channels, _CHANNEL_COUNTS) if free else [channels]
        for channels, free in (
            (layer.in_channels, is_free_input(layer)),
            (layer.out_channels, is_free_output(layer)),
        )
    ]
    cells: dict[tuple[int, int], Mapping[Level, Quartiles]] = {
        (inputs, outputs): _measured_cell(bench, subject, layer, inputs, outputs)
        for inputs, outputs in product(*counts)
    }
    return {
        "layer": key,
        "inputs": counts[0],
        "outputs": counts[1],
        "levels": [
            {
                "weight_bits": level[0],
                "activation_bits": level[1],
                "ms": [[list(cells[inputs, outputs][level]) for outputs in counts[1]] for inputs in counts[0]],
            }
            for level in (FLOAT, WIDE, NARROW)
        ],
    }


def _measured_cell(
    bench: _Bench, subject: _Subject, layer: LayerShape, inputs: int, outputs: int
) -> dict[Level, Quartiles]:
    """Return the quartiles of the time of a layer with so many channels in ms, by kind of arithmetic."""
    models: dict[tuple[Level, int], bytes] = {}
    shape: tuple[int, ...] = ()
    for level in (FLOAT, WIDE, NARROW):
        for copies in (1, COPIES):
            graph = repeated_layer(subject.graphs[level], layer.name, inputs, outputs, copies, quantized=level != FLOAT)
            models[level, copies] = _form(level)(graph, reads_pixels=False).model().SerializeToString()
            shape = graph.image_shape
    seconds = bench.seconds(models, bench.inputs(shape, pixels=False))
    made = {}
    for level in (FLOAT, WIDE, NARROW):
        single = 1000 * (seconds[level, COPIES] - seconds[level, 1]) / (COPIES - 1)
        first, middle, third = np.quantile(single, (0.25, 0.5, 0.75)).clip(0).tolist()
        made[level] = (first, middle, third)
    return made


def repeated_layer(graph: Graph, path: str, inputs: int, outputs: int, copies: int, *, quantized: bool) -> Graph:
    """Return a graph of copies of one layer that read the same tensor, and whose results are added up.

    Args:
        graph: Graph of a network.
        path: Path of the layer.
        inputs: Number of inputs that are left; not used for a depthwise layer.
        outputs: Number of outputs that are left.
        copies: Number of copies. Their weights and clip values differ, so that no runtime makes one of them.
        quantized: Whether the quantizer of the input is part of a copy.
    """
    layer = _with_channels(next(layer for layer in graph.layers if layer.path == path), inputs, outputs)
    quantizer = next((made for made in graph.quantizers if made.layer == path), None) if quantized else None
    draw = np.random.default_rng(0)
    operations: list[Operation] = []
    total = ""
    for number in range(copies):
        name, source = f"{path}.{number}", IMAGE
        if quantizer is not None:
            source = f"codes{number}"
            clip = quantizer.clip * (1 + number / 10)
            operations.append(
                replace(quantizer, name=source, inputs=(IMAGE,), shape=layer.input_shape, layer=name, clip=clip)
            )
        codes = draw.integers(0, layer.weight_levels + 1, layer.codes.shape, dtype=np.uint8)
        result = f"result{number}"
        operations.append(replace(layer, name=result, inputs=(source,), path=name, codes=codes))
        if total:
            operations.append(Add(name=f"sum{number}", inputs=(total, result), shape=layer.shape))
            result = f"sum{number}"
        total = result
    # Such a graph reads the layer's input in place of an image; that of a linear layer has no height and width.
    return replace(graph, image_shape=layer.input_shape, operations=tuple(operations), output=total)  # type: ignore[arg-type]


def _with_channels(layer: Layer, inputs: int, outputs: int) -> Layer:
    """Return a layer with its first channels; those of a linear layer are last in the shapes of tensors."""
    depthwise = layer.groups > 1 and layer.groups == layer.codes.shape[0] == len(layer.input_steps)
    read = outputs if depthwise else inputs
    whole = layer.groups > 1  # the inputs of a group stay
    return replace(
        layer,
        codes=np.ascontiguousarray(layer.codes[:outputs] if whole else layer.codes[:outputs, :inputs]),
        groups=outputs if depthwise else layer.groups,
        input_steps=layer.input_steps[:read],
        input_offsets=layer.input_offsets[:read],
        factor=layer.factor[:outputs],
        constant=layer.constant[:outputs],
        input_shape=(*layer.input_shape[:-1], read) if layer.linear else (read, *layer.input_shape[1:]),
        shape=(*layer.shape[:-1], outputs) if layer.linear else (outputs, *layer.shape[1:]),
    )


# --- whole networks ------------------------------------------------------------------------------------------------


def _measured_network(bench: _Bench, subject: _Subject, floats: Mapping[str, float]) -> dict[str, Any]:
    """Measure a network as a whole, at each kind of arithmetic.

    Args:
        bench: Runtime.
        subject: Network.
        floats: Median times of all layers at full precision, by shape.
    """
    models = {level: _form(level)(graph).model().SerializeToString() for level, graph in subject.graphs.items()}
    seconds = bench.seconds(models, bench.inputs(subject.graphs[FLOAT].image_shape, pixels=True))
    medians = {level: 1000 * float(np.median(seconds[level])) for level in models}
    return {
        "model": subject.shape.model,
        "dataset": subject.shape.dataset,
        "rest_ms": max(0.0, medians[FLOAT] - sum(floats[key] for key in _keys(subject.shape))),
        "whole": [
            {"weight_bits": bits[0], "activation_bits": bits[1], "ms": median} for bits, median in medians.items()
        ],
    }


def _form(level: Level) -> "type[OnnxForm]":
    from bench.export.onnx_forms.float import FloatForm
    from bench.export.onnx_forms.qdq import QdqForm

    return FloatForm if level == FLOAT else QdqForm
