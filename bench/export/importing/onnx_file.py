"""Reading of ONNX files that `bench export` wrote, which may be damaged or hostile.

The graph is made of the program in the file's properties, and of the named constants. Then the model is made again of
the graph. No node, constant or property may differ, so a runtime never executes anything that the harness does not
write itself. Scales and shifts of the layers may be any: they are what the network is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bench.errors import BenchError
from bench.export.graph.operations import AddConstant, Graph, Layer, LayerNorm, Operation, Prepend, border_map
from bench.export.graph.program import read_program
from bench.export.graph.tensors import ProgramError
from bench.export.importing.onnx_size import check_size
from bench.export.onnx_forms.form import PROGRAM, OnnxForm
from bench.export.onnx_forms.integer import IntegerForm
from bench.export.onnx_forms.qdq import QdqForm
from bench.export.onnx_forms.qonnx import QonnxForm
from bench.inputs.reading import parse_json

_FORMS: Mapping[str, type[OnnxForm]] = {form.name: form for form in (IntegerForm, QdqForm, QonnxForm)}
_ROUNDING = 1e-5
"""Largest relative difference of a number that was rounded to float32 on its way through a file."""
_LARGEST = 1e12
"""Largest size of a scale or a shift."""

Arrays = Mapping[str, NDArray[Any]]


def read_onnx(content: bytes) -> tuple[str, Graph]:
    """Read a network in a form of ONNX.

    Returns:
        Name of the form, and the graph.

    Raises:
        ProgramError: It is none that this version of the harness writes.
    """
    check_size(content)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ProgramError("it is no ONNX model") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    stated = properties.get(PROGRAM)
    if not isinstance(stated, str):
        raise ProgramError("it has no program: another tool wrote it, or an earlier version of the harness")
    graph = read_program(stated.encode())
    document = parse_json(stated.encode())
    name = document.get("form")
    if not isinstance(name, str) or name not in _FORMS:
        raise ProgramError(f"its form is none of {', '.join(_FORMS)}")
    form = _FORMS[name]
    arrays = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    with np.errstate(all="ignore"):  # wrong numbers give a model that differs
        operations = [_completed(form, made, arrays) for made in graph.operations]
        graph = replace(graph, operations=tuple(operations))
        try:
            again = form(graph).model()
        except (BenchError, ValueError, ArithmeticError, onnx.checker.ValidationError) as error:
            raise ProgramError("no model can be made of its program") from error
    _check_same(model, again, graph)
    return name, graph


def _array(tensor: TensorProto) -> NDArray[Any]:
    """Return a constant that is in the file itself."""
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data or not tensor.HasField("raw_data"):
        raise ProgramError("it has constants in another form than the harness writes")
    try:
        array: NDArray[Any] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, MemoryError) as error:
        raise ProgramError("it has damaged constants") from error
    return array


def _completed(form: type[OnnxForm], operation: Operation, arrays: Arrays) -> Operation:
    """Return an operation with its numbers."""
    name = operation.name
    if isinstance(operation, Layer):
        return _layer(form, operation, arrays)
    if isinstance(operation, LayerNorm):
        return replace(
            operation,
            weight=_shaped(arrays, f"{name}.norm_weight", operation.weight.shape),
            bias=_shaped(arrays, f"{name}.norm_bias", operation.bias.shape),
        )
    if isinstance(operation, AddConstant):
        return replace(operation, values=_shaped(arrays, f"{name}.values", (1, *operation.shape))[0])
    if isinstance(operation, Prepend):
        rows = _shaped(arrays, f"{name}.values", (1, *operation.shape))[0]
        return replace(operation, values=rows[: len(operation.values)])
    return operation


def _shaped(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    values = _reals(arrays, name)
    if values.shape != shape:
        raise ProgramError(f"the constant '{name}' has another shape than its program says")
    return values


def _layer(form: type[OnnxForm], layer: Layer, arrays: Arrays) -> Layer:
    """Return a layer with its codes, factors and constants."""
    outputs, inputs, *_ = shape = layer.codes.shape
    weights = _stored(arrays, f"{layer.path}.weight")
    if weights.shape != ((inputs, outputs) if layer.linear else shape):
        raise ProgramError(f"the weights of layer '{layer.path}' have another shape than its program says")
    codes = form.stored_codes(layer, weights.T.reshape(shape) if layer.linear else weights)
    if not np.isfinite(codes).all() or codes.min() < 0 or codes.max() > layer.weight_levels:
        raise ProgramError(f"the weights of layer '{layer.path}' do not have {layer.weight_bits} bits")
    layer = replace(layer, codes=np.ascontiguousarray(codes.astype(np.uint8)))
    scales, added = (_reals(arrays, f"{layer.path}.{name}") for name in ("scale", "constant"))
    if scales.size != outputs or added.size % outputs:
        raise ProgramError(f"layer '{layer.path}' has other numbers of scales or shifts than channels")
    layer = replace(layer, factor=scales.reshape(-1) / form.scale_unit(layer))
    first = added.reshape(outputs, -1)[:, 0]
    if layer.reads_image:  # the normalised pixels of this form have no offset
        return replace(layer, constant=first)
    return replace(layer, constant=first - border_map(layer).values[:, 0, 0])


def _stored(arrays: Arrays, name: str) -> NDArray[Any]:
    if name not in arrays or arrays[name].dtype.kind not in "iuf":
        raise ProgramError(f"the constant '{name}' is missing")
    return arrays[name]


def _reals(arrays: Arrays, name: str) -> NDArray[np.float64]:
    values = _stored(arrays, name).astype(np.float64)
    if not values.size or not (np.abs(values) <= _LARGEST).all():
        raise ProgramError(f"the constant '{name}' is not finite")
    return values


def _check_same(model: onnx.ModelProto, again: onnx.ModelProto, graph: Graph) -> None:
    """Check that a model is what the harness writes for its graph."""
    largest = {f"{layer.path}.constant": _largest_shift(layer) for layer in graph.layers}
    largest |= {f"{layer.path}.scale": 0.0 for layer in graph.layers}
    given, expected = model.graph.initializer, again.graph.initializer
    if [tensor.name for tensor in given] != [tensor.name for tensor in expected]:
        raise ProgramError("it has other constants than its program needs")
    for own, other in zip(given, expected, strict=True):
        if own.name in largest and (own.dims, own.data_type) == (other.dims, other.data_type):
            values, made = numpy_helper.to_array(own), numpy_helper.to_array(other)
            if np.allclose(values, made, rtol=_ROUNDING, atol=_ROUNDING * largest[own.name]):
                other.raw_data = own.raw_data
    if model.SerializeToString(deterministic=True) != again.SerializeToString(deterministic=True):
        raise ProgramError("its nodes or constants are not those of its program")


def _largest_shift(layer: Layer) -> float:
    """Return the size of the numbers whose sum is added to a layer's output."""
    return float(np.abs(layer.constant).max() + np.abs(layer.border.values - layer.constant[:, None, None]).max())
