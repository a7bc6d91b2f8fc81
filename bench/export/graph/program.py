"""The program of a network: the operations of its graph as JSON, without the weights and scales of the layers.

Every exported file has it, in the form of its own, so that `bench import` can make the graph again. Files may come from
anywhere. Reading a program checks that its operations fit together, and bounds the work that they ask for. That nothing
else is in the file is checked by making the file again: see `bench.export.importing`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.export.executor import DEFAULTS
from bench.export.graph.operations import (
    LOGITS,
    Add,
    AddConstant,
    Clip,
    Gelu,
    Graph,
    Hardsigmoid,
    Hardswish,
    Layer,
    LayerNorm,
    MaxPool,
    Mean,
    Multiply,
    Operation,
    Permute,
    Prepend,
    Product,
    Quantize,
    Rescale,
    Reshape,
    Select,
    Softmax,
)
from bench.export.graph.steps import AnyStep, Name, PositiveReal, Real, Size, Title
from bench.export.graph.tensors import ProgramError, Tensors
from bench.inputs.reading import parse_json

VERSION = 2
"""Version of the program's meaning."""
_MOST_OPERATIONS = 20_000
_MOST_VALUES = 1 << 19
"""Largest number of values of a program; an operation has at most thirty."""


# --- writing --------------------------------------------------------------------------------------------------------


def stated(operation: Operation) -> dict[str, Any]:
    """Return an operation as JSON, without values that are the default."""
    name, values = _STATED[type(operation)]
    made = {key: _plain(value) for key, value in values(operation).items()}
    further = {key: value for key, value in made.items() if DEFAULTS.get(key, ...) != value}
    return {"operation": name, "name": operation.name, "inputs": list(operation.inputs), **further}


def about(graph: Graph) -> dict[str, Any]:
    """Return what a program says of the whole network."""
    return {
        "version": VERSION,
        "model": graph.model,
        "dataset": graph.dataset,
        "image_shape": list(graph.image_shape),
        "mean": graph.mean.tolist(),
        "std": graph.std.tolist(),
        "output": graph.output,
    }


def text(program: Mapping[str, Any]) -> str:
    """Return the text of a program."""
    return json.dumps(program, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quantize_values(operation: Quantize) -> dict[str, Any]:
    return {
        "layer": operation.layer,
        "largest_code": operation.levels,
        "clip": operation.clip,
        "lowest": operation.offset,
        "right": operation.right,
    }


def _layer_values(layer: Layer) -> dict[str, Any]:
    return {
        "path": layer.path,
        "linear": layer.linear,
        "weight_bits": layer.weight_bits,
        "weight_shape": layer.codes.shape,
        "weight_step": layer.weight_step,
        "largest_code": layer.input_levels,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }


def _pool_values(operation: MaxPool) -> dict[str, Any]:
    return {"kernel": operation.kernel, "stride": operation.stride, "padding": operation.padding}


_STATED: Mapping[type[Operation], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    Quantize: ("quantize", _quantize_values),
    Layer: ("layer", _layer_values),
    Clip: ("clip", lambda operation: {"high": operation.high}),
    Add: ("add", lambda _: {}),
    Multiply: ("multiply", lambda _: {}),
    Mean: ("mean", lambda operation: {"keeps_dimensions": operation.keeps_dimensions}),
    MaxPool: ("max_pool", _pool_values),
    Hardsigmoid: ("hardsigmoid", lambda _: {}),
    Hardswish: ("hardswish", lambda _: {}),
    Product: ("product", lambda operation: {"path": operation.path}),
    Rescale: ("rescale", lambda operation: {"factor": operation.factor}),
    Softmax: ("softmax", lambda operation: {"axis": operation.axis}),
    Gelu: ("gelu", lambda _: {}),
    LayerNorm: ("layer_norm", lambda operation: {"epsilon": operation.epsilon}),
    AddConstant: ("add_constant", lambda _: {}),
    Prepend: ("prepend", lambda operation: {"tokens": len(operation.values)}),
    Permute: ("permute", lambda operation: {"axes": operation.axes}),
    Select: ("select", lambda operation: {"index": operation.index}),
    Reshape: ("reshape", lambda operation: {"shape": operation.shape}),
}
"""Name of each operation, and a function that returns its values."""


# --- reading --------------------------------------------------------------------------------------------------------


class Program(BaseModel):
    """A program that was read, whose operations are not yet known to fit together."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: Title
    dataset: Title
    image_shape: tuple[Size, Size, Size]
    mean: list[Real]
    std: list[PositiveReal]
    output: Name
    operations: Annotated[list[AnyStep], Field(max_length=_MOST_OPERATIONS)]


def read_program(content: bytes) -> Graph:
    """Read a program.

    Args:
        content: Text of the program.

    Returns:
        The graph, in which the layers have no codes, factors and constants yet.

    Raises:
        ProgramError: It is none that this version writes, its operations do not fit together, or it asks for more work
            than any network that is exported.
    """
    try:
        document = parse_json(content, _MOST_VALUES)
    except ValueError as error:
        raise ProgramError(f"its program is not JSON: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is int and version != VERSION:
        raise ProgramError(f"its program has version {version}, and this version of the harness reads {VERSION}")
    try:
        program = Program.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise ProgramError(f"its program is not valid: {place}: {first['msg']}") from error
    return _checked(program)


def _checked(program: Program) -> Graph:
    """Return the graph of a program, with shapes of all tensors."""
    if not len(program.mean) == len(program.std) == program.image_shape[0]:
        raise ProgramError("its program has not one mean and one deviation for each channel of an image")
    tensors = Tensors(program.image_shape, np.array(program.mean), np.array(program.std))
    operations = []
    for step in program.operations:
        if step.name in tensors.known or step.name == LOGITS:
            raise ProgramError(f"'{step.name}' is made twice")
        made = step.made(tensors)
        tensors.add(made)
        operations.append(made)
    layers = [operation for operation in operations if isinstance(operation, Layer | Product)]
    if not layers or len({layer.path for layer in layers}) < len(layers):
        raise ProgramError("it has no layers, or two of one path")
    output = tensors.known.get(program.output)
    if output is None or isinstance(output, Quantize) or len(output.shape) != 1 or output.name in tensors.read:
        raise ProgramError(f"'{program.output}' is no vector of logits")
    return Graph(
        model=program.model,
        dataset=program.dataset,
        image_shape=program.image_shape,
        mean=np.array(program.mean),
        std=np.array(program.std),
        operations=tuple(operations),
        output=program.output,
    )
