"""Times of layers that were measured on a machine: a table by shape, bits and numbers of channels, in a JSON file.

A runtime knows few kinds of arithmetic, so that many numbers of bits have the same time. The table has one level for
each: the highest bits that are computed in this way. Between tabulated numbers of channels times are interpolated. A
network takes the sum of its layers, and a rest: what the float network takes beyond its layers, measured as a whole.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.compression.policy import FULL_PRECISION_BITS
from bench.errors import BenchError
from bench.inputs.reading import JSON_BYTES, parse_json, read_bytes
from bench.spec.schema import ENGINES, AcceleratorSpec

if TYPE_CHECKING:
    from bench.compression.shapes import LayerShape, NetworkShape

FOLDER = "measured"
"""Folder of a store with tables, each in a folder named by the hash of what was measured, and on which machine."""

Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Bits = Annotated[int, Field(ge=1, le=FULL_PRECISION_BITS)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]

Quartiles = tuple[Milliseconds, Milliseconds, Milliseconds]
"""First quartile, median and third quartile, in milliseconds for one image."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class LevelTimes(_Document):
    """Times of a layer in one kind of arithmetic.

    Attributes:
        weight_bits, activation_bits: Highest bits that are computed in this way.
        ms: Times by number of inputs and of outputs.
    """

    weight_bits: Bits
    activation_bits: Bits
    ms: tuple[tuple[Quartiles, ...], ...]


class MeasuredLayer(_Document):
    """Times of the layers of one shape.

    Attributes:
        layer: Shape in words, as `layer_key` writes it.
        inputs, outputs: Numbers of channels that were measured, rising; one if the layer cannot lose any.
        levels: Times by kind of arithmetic.
    """

    layer: str
    inputs: Counts
    outputs: Counts
    levels: tuple[LevelTimes, ...]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for counts in (self.inputs, self.outputs):
            if any(low >= high for low, high in pairwise(counts)):
                raise ValueError("numbers of channels do not rise")
        rows = [len(self.outputs)] * len(self.inputs)
        if any([len(row) for row in level.ms] != rows for level in self.levels):
            raise ValueError("times are missing, or there are too many")
        return self

    def quartiles(self, weight_bits: int, activation_bits: int, in_channels: int, out_channels: int) -> Quartiles:
        """Return the quartiles of the time, interpolated between the numbers of channels that were measured.

        Raises:
            BenchError: The bits, or so many channels, were not measured.
        """
        times = self._level(weight_bits, activation_bits).ms
        rows = _shares(self.inputs, in_channels, self.layer)
        columns = _shares(self.outputs, out_channels, self.layer)
        cells = [(share * part, times[i][o]) for i, share in rows for o, part in columns]
        first, middle, third = (sum(share * cell[index] for share, cell in cells) for index in range(3))
        return first, middle, third

    def _level(self, weight_bits: int, activation_bits: int) -> LevelTimes:
        asked = (weight_bits, activation_bits)
        for level in sorted(self.levels, key=lambda level: (level.weight_bits, level.activation_bits)):
            highest = (level.weight_bits, level.activation_bits)
            fits = all(bits <= most for bits, most in zip(asked, highest, strict=True))
            if asked == highest or (fits and FULL_PRECISION_BITS not in highest):  # 16 bits are no real numbers
                return level
        raise BenchError(
            f"{weight_bits}-bit weights and {activation_bits}-bit inputs are not measured; allowed on this hardware: "
            f"up to 8 bits, or {FULL_PRECISION_BITS} for both"
        )


class WholeTime(_Document):
    """Time of a whole network with the same bits in all layers, for one image."""

    weight_bits: Bits
    activation_bits: Bits
    ms: Milliseconds


class MeasuredNetwork(_Document):
    """A network that was measured as a whole.

    Attributes:
        model, dataset: Names of the network.
        rest_ms: Milliseconds of the float network beyond its layers, for one image.
        whole: Times of the network at each kind of arithmetic, to compare the sum of its layers with.
    """

    model: str
    dataset: str
    rest_ms: Milliseconds
    whole: tuple[WholeTime, ...]


class LayerTimes(_Document):
    """The table of an engine on a machine.

    Attributes:
        engine, version: Runtime that executed the layers.
        form: Form of ONNX that the layers had.
        batch: Images that were computed together.
        machine: Description of the machine.
        networks: Networks whose layers the table has.
        layers: Times by shape.
    """

    engine: str
    version: str
    form: str
    batch: Annotated[int, Field(ge=1)]
    machine: dict[str, Any]
    networks: tuple[MeasuredNetwork, ...]
    layers: tuple[MeasuredLayer, ...]

    def quartiles(
        self, layer: "LayerShape", weight_bits: int, activation_bits: int, in_channels: int, out_channels: int
    ) -> Quartiles:
        """Return the quartiles of a layer's time in milliseconds for one image.

        Raises:
            BenchError: Such a layer, such bits, or so many channels were not measured.
        """
        key = layer_key(layer)
        entry = next((entry for entry in self.layers if entry.layer == key), None)
        if entry is None:
            raise BenchError(f"the measured times of '{self.engine}' have no layer '{key}', as '{layer.name}' is")
        inputs = layer.in_channels if layer.depthwise else in_channels
        return entry.quartiles(weight_bits, activation_bits, inputs, out_channels)

    def network(self, network: "NetworkShape") -> MeasuredNetwork:
        """Return what was measured of a whole network.

        Raises:
            BenchError: The network was not measured.
        """
        for entry in self.networks:
            if (entry.model, entry.dataset) == (network.model, network.dataset):
                return entry
        raise BenchError(
            f"the measured times of '{self.engine}' are not those of {network.model} on {network.dataset}; measure "
            f"these with --set accelerator.hardware={self.engine}"
        )

    @property
    def spreads(self) -> list[float]:
        """Distance of the quartiles in percent of the median, of all times above 0, rising."""
        times = [cell for layer in self.layers for level in layer.levels for row in level.ms for cell in row]
        return sorted(100 * (third - first) / middle for first, middle, third in times if middle > 0)

    def in_words(self) -> str:
        """Name the runtime and the processor, and say how far times of one layer differ between rounds."""
        return (
            f"measured with {self.engine} {self.version} (form {self.form}) on {self.machine.get('processor')}, batch "
            f"{self.batch}; {self.spread_in_words()}"
        )

    def spread_in_words(self) -> str:
        """Say how far times of one layer differ between rounds."""
        spreads = self.spreads or [0.0]
        middle, tenth = (spreads[int(share * (len(spreads) - 1))] for share in (0.5, 0.9))
        return f"quartiles are {middle:.0f} % of the median apart in the middle layer, up to {tenth:.0f} % in 9 of 10"


def layer_key(layer: "LayerShape") -> str:
    """Describe what a layer's time depends on besides bits and kept channels."""
    kernel, stride, size, result = (
        "×".join(map(str, pair)) for pair in (layer.kernel, layer.stride, layer.in_size, layer.out_size)
    )
    free = f"{'' if is_free_input(layer) else ' fixed'}→{'' if is_free_output(layer) else 'fixed '}"
    groups = "" if layer.groups == 1 else f" in {layer.groups} groups"
    return f"{layer.kind} {kernel}/{stride} {layer.in_channels}{free}{layer.out_channels} {size}→{result}{groups}"


def is_free_input(layer: "LayerShape") -> bool:
    """Whether a layer can lose inputs; those of a depthwise one are its outputs."""
    return layer.producer is not None and not layer.depthwise


def is_free_output(layer: "LayerShape") -> bool:
    """Whether a layer can lose outputs."""
    return layer.prunable or layer.leader is not None


def _shares(counts: Sequence[int], count: int, layer: str) -> list[tuple[int, float]]:
    """Return the indices of the neighbours of a count among tabulated ones, with their shares."""
    index = bisect_left(counts, count)
    if index < len(counts) and counts[index] == count:
        return [(index, 1.0)]
    if not 0 < index < len(counts):
        raise BenchError(
            f"{count} channels of the layer '{layer}' are not measured; allowed: {counts[0]} to {counts[-1]}"
        )
    low, high = counts[index - 1], counts[index]
    share = (count - low) / (high - low)
    return [(index - 1, 1 - share), (index, share)]


def times_on(accelerator: AcceleratorSpec) -> LayerTimes:
    """Read the table of an accelerator whose times are measured.

    Raises:
        BenchError: It cannot be read, or other numbers of images were computed together.
    """
    times = read_times(accelerator.hardware)
    if times.batch != accelerator.batch:
        raise BenchError(
            f"the measured times '{accelerator.hardware}' are those of batch {times.batch}, but accelerator.batch is "
            f"{accelerator.batch}; use --set accelerator.batch={times.batch}"
        )
    return times


def read_times(hardware: str) -> LayerTimes:
    """Read a table.

    Args:
        hardware: Path of the file.

    Raises:
        BenchError: It cannot be read, or is none; or the name of an engine was given, whose times are not measured yet.
    """
    if hardware in ENGINES:
        raise BenchError(
            f"the times of '{hardware}' are not measured yet; type: bench cost --hardware {hardware} --model MODEL "
            "--dataset DATASET --bits 4, and give the file that it names"
        )
    try:
        return _read(hardware, Path(hardware).stat().st_mtime_ns)
    except OSError as error:
        reason = error.strerror or error
    except ValidationError:
        reason = "it is no table of measured times"
    except ValueError as error:
        reason = str(error)
    raise BenchError(
        f"the measured times '{hardware}' cannot be read: {reason}; name the runtime to measure again: "
        f"--set accelerator.hardware={Path(hardware).stem}"
    )


@lru_cache(maxsize=8)
def _read(path: str, _: int) -> LayerTimes:
    return LayerTimes.model_validate(parse_json(read_bytes(Path(path), JSON_BYTES)))
