"""Reading of packed networks, which may be damaged or hostile.

The graph is made of the file's program and numbers. Then the file is made again of the graph. Whatever this does not
reproduce was not written by the harness, so the file is refused. Numbers may be any that the form allows: they are what
the network is.
"""

from dataclasses import replace
from math import prod

import numpy as np

from bench.errors import BenchError
from bench.export.executor import unpack
from bench.export.graph.operations import AddConstant, Graph, Layer, LayerNorm, Operation, Prepend, border_map
from bench.export.graph.program import read_program
from bench.export.graph.tensors import ProgramError
from bench.export.packed import FRACTION_BITS, Tensors, packed_tensors
from bench.models.safetensors import FormatError, parse_safetensors

_UNIT = 2.0**FRACTION_BITS
_LARGEST = 1e9
"""Largest size of a constant."""


def read_packed(content: bytes) -> Graph:
    """Read a packed network.

    Raises:
        ProgramError: It is none that this version of the harness writes.
    """
    try:
        tensors = {name: tensor.numpy() for name, tensor in parse_safetensors(content).items()}
    except FormatError as error:
        raise ProgramError(f"it is no valid safetensors file: {error}") from error
    if "program" not in tensors or tensors["program"].dtype != np.uint8 or tensors["program"].ndim != 1:
        raise ProgramError("it has no program")
    graph = read_program(tensors["program"].tobytes())
    numbers = _Numbers(tensors)
    operations = [numbers.completed(made) for made in graph.operations]
    graph = replace(graph, operations=tuple(operations))
    try:
        again = packed_tensors(graph)
    except (BenchError, ArithmeticError) as error:
        raise ProgramError("numbers of its computation could have more than 62 bits") from error
    _check_same(tensors, again, numbers.largest_difference)
    return graph


class _Numbers:
    """The numbers of a packed network, which are read layer by layer.

    Attributes:
        largest_difference: Largest difference of biases that rounding explains, in units.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._position = dict.fromkeys(("weights", "multipliers", "shifts", "biases", "constants"), 0)
        self.largest_difference = 0.0

    def completed(self, operation: Operation) -> Operation:
        """Return an operation with its numbers."""
        if isinstance(operation, Layer):
            return self._layer(operation)
        if isinstance(operation, LayerNorm):
            return replace(
                operation, weight=self._constants(operation.weight.shape), bias=self._constants(operation.bias.shape)
            )
        if isinstance(operation, AddConstant | Prepend):
            return replace(operation, values=self._constants(operation.values.shape))
        return operation

    def _constants(self, shape: tuple[int, ...]) -> np.ndarray:
        values = self._taken("constants", prod(shape)).astype(np.float64).reshape(shape)
        if not (np.abs(values) <= _LARGEST).all():
            raise ProgramError("its constants are not finite")
        return values

    def _layer(self, layer: Layer) -> Layer:
        """Return a layer with its codes, factors and constants."""
        outputs = layer.codes.shape[0]
        layer = replace(layer, codes=self._codes(layer))
        steps = layer.input_steps if len(set(layer.input_steps.tolist())) > 1 else layer.input_steps[:1]
        multipliers = self._taken("multipliers", len(steps) * outputs).reshape(len(steps), outputs)
        shifts = self._taken("shifts", outputs)
        row, column = np.abs(multipliers).argmax(axis=0), np.arange(outputs)
        scales = np.ldexp(multipliers[row, column].astype(np.float64), -shifts.astype(np.intc))
        layer = replace(layer, factor=scales / (layer.weight_step * steps[row] * _UNIT))
        added = border_map(layer)  # without constants
        biases = self._taken("biases", added.values.size).reshape(added.values.shape) / _UNIT
        self.largest_difference = max(
            self.largest_difference, 4 + float(np.abs(added.values).max()) * _UNIT / (1 << 28)
        )
        return replace(layer, constant=biases[:, 0, 0] - added.values[:, 0, 0])

    def _codes(self, layer: Layer) -> np.ndarray:
        first, count = self._position["weights"], prod(layer.codes.shape)
        self._position["weights"] = end = first + count * layer.weight_bits
        string = self._tensors.get("weights")
        if string is None or string.dtype != np.uint8 or string.ndim != 1 or end > 8 * string.size:
            raise ProgramError("weights are missing")
        return unpack(string, layer.weight_bits, first, count).reshape(layer.codes.shape)

    def _taken(self, name: str, count: int) -> np.ndarray:
        first = self._position[name]
        self._position[name] = end = first + count
        numbers = self._tensors.get(name)
        if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "if" or end > numbers.size:
            raise ProgramError(f"{name} are missing")
        taken: np.ndarray = numbers[first:end]
        return taken


def _check_same(tensors: Tensors, again: Tensors, largest_difference: float) -> None:
    """Check that a file is what the harness writes for its graph."""
    if tensors.keys() != again.keys():
        raise ProgramError(f"it has other tensors than {', '.join(again)}")
    if not np.array_equal(tensors["program"], again["program"]):
        raise ProgramError("its program has values that do not follow from its operations and numbers")
    tolerances = {"multipliers": 1.0, "biases": largest_difference}
    for name, expected in again.items():
        given = tensors[name]
        if given.dtype != expected.dtype or given.shape != expected.shape:
            raise ProgramError(f"its '{name}' has another size than its program says")
        if name in tolerances:
            differences = np.abs(given.astype(np.float64) - expected)
            same = differences.max(initial=0.0) <= tolerances[name]
        else:
            same = np.array_equal(given, expected)
        if not same:
            raise ProgramError(f"its '{name}' is not what the program of such a network needs")
