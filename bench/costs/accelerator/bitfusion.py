"""BitFusion: cycles, traffic and energy of a layer on a bit-flexible systolic array.

The analytical model of the simulator that was published with the accelerator (Sharma et al., "Bit Fusion:
Bit-Level Dynamically Composable Architecture for Accelerating Deep Neural Networks", ISCA 2018,
arXiv:1712.01507; hsharma35/bitfusion). A layer is cut into tiles that fit half of each buffer, since the other
half is being filled, and the five loops over tiles are run in some order. The array's cycles depend on the tiles,
the traffic to memory on tiles and order. Of all tilings and all 120 orders the fastest is taken, among equally
fast ones that of least energy. `docs/bitfusion.md` says what is modelled and how exactly.

All counts are exact integers for a whole batch.
"""

import functools
import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError, unknown_name

Form = Literal["conv", "image", "channelwise"]
Integers = NDArray[np.int64]

PARTIAL_SUM_BITS = 32
"""Bits of an output, on chip and in memory, whatever the operands have."""

# The loops over tiles, in the order of the rows of `_Tilings.trips`.
_BATCH, _WIDTH, _HEIGHT, _IN, _OUT = range(5)

# Tilings of the smallest bounds that are evaluated first, to learn how many cycles suffice.
_PROBES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """An accelerator: its array, its buffers and what each event costs.

    Attributes:
        name: Of the configuration.
        rows: Units that reduce over inputs, at full precision (N).
        columns: Units that compute different outputs (M).
        frequency_hz: Clock.
        dram_bits_per_cycle: Width of the memory's interface, shared by reads and writes.
        wbuf_bytes, ibuf_bytes, obuf_bytes: Whole buffers of weights, inputs and outputs; a tile may use half.
        min_bits, max_bits: Precisions that the units compute with; fewer bits than `min_bits` gain nothing.
        core_pj_per_cycle: Energy of the whole array in a cycle of computing, the same for all bits.
        wbuf_read_pj_per_bit, wbuf_write_pj_per_bit, ibuf_read_pj_per_bit, ibuf_write_pj_per_bit,
            obuf_read_pj_per_bit, obuf_write_pj_per_bit: Energy of the buffers.
        dram_pj_per_bit: Energy of the memory, for reads and writes.
    """

    name: str
    rows: int
    columns: int
    frequency_hz: int
    dram_bits_per_cycle: int
    wbuf_bytes: int
    ibuf_bytes: int
    obuf_bytes: int
    min_bits: int
    max_bits: int
    core_pj_per_cycle: float
    wbuf_read_pj_per_bit: float
    wbuf_write_pj_per_bit: float
    ibuf_read_pj_per_bit: float
    ibuf_write_pj_per_bit: float
    obuf_read_pj_per_bit: float
    obuf_write_pj_per_bit: float
    dram_pj_per_bit: float

    @property
    def tile_bits(self) -> tuple[int, int, int]:
        """Bits that a tile of weights, of inputs and of outputs may have: half a buffer each."""
        return 4 * self.wbuf_bytes, 4 * self.ibuf_bytes, 4 * self.obuf_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Loops:
    """One layer as the accelerator sees it.

    Forms:

    * "conv": a convolution without groups. One kernel position at a time, input channels on the rows, output
      channels on the columns. A linear layer has kernel, out_size and stride 1.
    * "image": a convolution that reads the image, by im2col. Kernel positions and input channels together on the
      rows; the memory holds, and sends, the unfolded input, kernel² values for each output position and channel.
    * "channelwise": a depthwise convolution, in_channels = out_channels. The kernel² positions of one channel on
      the rows, channels on the columns, each column reading the inputs of its own channel. A tile of c channels and
      o × o positions of b images takes b·o²·⌈c/columns⌉·⌈kernel²/rows⌉ cycles (rows after fusion); it holds the
      c filters, padded to whole rows as everywhere, and of the inputs (kernel + (o − 1)·stride)²·c·b values, so that
      memory is read without unfolding. Inputs are indexed by the loop over channels as well as by those over images
      and positions; there is no loop over input channels. Channel tiles are those of "conv". The published
      accelerator has no such mode: its columns share their inputs.

    Attributes:
        kernel: Side of the square kernel.
        out_size: Side of the square output.
        stride: Of the kernel; the input's side is (out_size − 1)·stride + kernel, padding included.
        in_channels, out_channels: Channels.
        batch: Images that are computed together.
        form: How the layer lies on the array.

    Raises:
        BenchError: A count is below 1, or a channelwise layer changes the number of channels.
    """

    kernel: int
    out_size: int
    stride: int
    in_channels: int
    out_channels: int
    batch: int = 16
    form: Form = "conv"

    def __post_init__(self) -> None:
        for key in ("kernel", "out_size", "stride", "in_channels", "out_channels", "batch"):
            if getattr(self, key) < 1:
                raise BenchError(f"{key} of a layer is {getattr(self, key)}; allowed: 1 or more")
        if self.form == "channelwise" and self.in_channels != self.out_channels:
            raise BenchError(
                f"a channelwise layer has {self.in_channels} inputs and {self.out_channels} outputs; "
                "allowed: the same number"
            )

    @property
    def reduced_channels(self) -> int:
        """Input channels that one output depends on."""
        return 1 if self.form == "channelwise" else self.in_channels


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What a layer costs for a whole batch, and its latency and energy for one image.

    Attributes:
        hardware: Where it was executed.
        batch: Images that were computed together.
        compute_cycles: Cycles in which the array computes.
        stall_cycles: Cycles in which it waits for memory, the first tiles and the last one included.
        dram_read_bits, dram_write_bits: Traffic of the memory.
        wbuf_read_bits, wbuf_write_bits, ibuf_read_bits, ibuf_write_bits, obuf_read_bits, obuf_write_bits: Traffic of
            the buffers.
    """

    hardware: Hardware
    batch: int
    compute_cycles: int
    stall_cycles: int
    dram_read_bits: int
    dram_write_bits: int
    wbuf_read_bits: int
    wbuf_write_bits: int
    ibuf_read_bits: int
    ibuf_write_bits: int
    obuf_read_bits: int
    obuf_write_bits: int

    @property
    def cycles(self) -> int:
        """Cycles of the whole batch."""
        return self.compute_cycles + self.stall_cycles

    @property
    def core_energy_nj(self) -> float:
        """Energy of the array, whole batch."""
        return self.compute_cycles * self.hardware.core_pj_per_cycle / 1000

    @property
    def wbuf_energy_nj(self) -> float:
        """Energy of the buffer of weights, whole batch."""
        costs = self.hardware
        read = self.wbuf_read_bits * costs.wbuf_read_pj_per_bit
        return (read + self.wbuf_write_bits * costs.wbuf_write_pj_per_bit) / 1000

    @property
    def ibuf_energy_nj(self) -> float:
        """Energy of the buffer of inputs, whole batch."""
        costs = self.hardware
        read = self.ibuf_read_bits * costs.ibuf_read_pj_per_bit
        return (read + self.ibuf_write_bits * costs.ibuf_write_pj_per_bit) / 1000

    @property
    def obuf_energy_nj(self) -> float:
        """Energy of the buffer of outputs, whole batch."""
        costs = self.hardware
        read = self.obuf_read_bits * costs.obuf_read_pj_per_bit
        return (read + self.obuf_write_bits * costs.obuf_write_pj_per_bit) / 1000

    @property
    def dram_energy_nj(self) -> float:
        """Energy of the memory, whole batch."""
        return (self.dram_read_bits + self.dram_write_bits) * self.hardware.dram_pj_per_bit / 1000

    @property
    def energy_nj(self) -> float:
        """Energy of the whole batch."""
        buffers = self.wbuf_energy_nj + self.ibuf_energy_nj + self.obuf_energy_nj
        return self.core_energy_nj + buffers + self.dram_energy_nj

    @property
    def latency_ms(self) -> float:
        """Time per image in ms: the batch's, divided by its images."""
        return self.cycles * 1000 / self.hardware.frequency_hz / self.batch

    @property
    def energy_mj(self) -> float:
        """Energy per image in mJ."""
        return self.energy_nj * 1e-6 / self.batch


def hardware_names() -> list[str]:
    """The names of the configurations that come with the harness."""
    files = resources.files("bench.costs.accelerator").joinpath("configurations").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_hardware(name: str | Path) -> Hardware:
    """A hardware configuration.

    Args:
        name: Of a configuration that comes with the harness, or the path of a TOML file, ending in ".toml".

    Raises:
        BenchError: There is no such configuration or file, or the file has a wrong key or value.
    """
    if Path(name).suffix == ".toml":
        return _hardware_from(_read_text(Path(name)), Path(name).stem, f"the hardware configuration '{name}'")
    if name not in hardware_names():
        raise unknown_name("hardware", str(name), hardware_names(), "docs/bitfusion.md")
    text = (
        resources.files("bench.costs.accelerator")
        .joinpath("configurations", f"{name}.toml")
        .read_text(encoding="utf-8")
    )
    return _hardware_from(text, str(name), f"the hardware configuration '{name}'")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot read the hardware configuration '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"the hardware configuration '{path}' is not valid UTF-8: {error.reason}") from error


def _hardware_from(text: str, name: str, where: str) -> Hardware:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{where} is not valid TOML: {error}") from error
    types: dict[str, Any] = {field.name: field.type for field in fields(Hardware) if field.name != "name"}
    for key, value in values.items():
        if key not in types:
            raise unknown_name(f"key in {where}", key, types, "docs/bitfusion.md")
        _check_positive(value, types[key], f"{where}: {key}")
    missing = [key for key in types if key not in values]
    if missing:
        raise BenchError(f"{where} lacks {', '.join(missing)}")
    if values["min_bits"] > values["max_bits"]:
        raise BenchError(f"{where}: min_bits is {values['min_bits']}; allowed: at most max_bits, {values['max_bits']}")
    return Hardware(name=name, **values)


def _check_positive(value: Any, kind: type, where: str) -> None:
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
        raise BenchError(f"{where} is {value!r}; allowed: a {'whole number' if kind is int else 'number'} above 0")


def fusion_factor(hardware: Hardware, weight_bits: int, activation_bits: int) -> int:
    """Products that one unit computes in a cycle; the array's rows are multiplied by it.

    Raises:
        BenchError: A number of bits is below 1 or above the most that the units compute with.
    """
    factor = 1
    for what, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if not 1 <= bits <= hardware.max_bits:
            raise BenchError(f"{what} is {bits}; allowed on {hardware.name}: 1 to {hardware.max_bits}")
        factor *= hardware.max_bits // max(bits, hardware.min_bits)
    return factor


@functools.cache
def execute(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> Execution:
    """The fastest execution of a layer, of least energy among equally fast ones.

    Exact: tilings are left out only if a lower bound of their cycles exceeds what another tiling is known to take.

    Args:
        hardware: The accelerator.
        loops: The layer.
        weight_bits: Stored and moved as they are, computed as at least `hardware.min_bits`.
        activation_bits: The same for the layer's inputs.

    Raises:
        BenchError: A number of bits is not supported, or no tile fits the buffers.
    """
    tilings = _tilings(hardware, loops, weight_bits, activation_bits)
    too_large = tilings.tiles > np.array(hardware.tile_bits)[:, None]
    tilings = tilings.take(np.flatnonzero(~np.any(too_large, axis=0)))
    if not tilings.compute.size:
        raise BenchError(
            f"no tile of a layer with kernel {loops.kernel} and {loops.in_channels} × {loops.out_channels} channels "
            f"fits half the buffers of {hardware.name}: weights {hardware.wbuf_bytes}, inputs {hardware.ibuf_bytes}, "
            f"outputs {hardware.obuf_bytes} bytes"
        )
    bounds = _least_cycles(hardware, tilings)
    probes = tilings.take(np.argsort(bounds)[:_PROBES])
    enough = _schedules(hardware, probes)[0].min()
    tilings = tilings.take(np.flatnonzero(bounds <= enough))
    cycles, totals = _schedules(hardware, tilings)
    orders, chosen = np.nonzero(cycles == cycles.min())
    choices = np.vstack(
        [totals[:, orders, chosen], tilings.compute[chosen], tilings.macs[chosen], tilings.sums[chosen]]
    )
    executions = [
        _execution(hardware, loops.batch, int(cycles.min()), (weight_bits, activation_bits), choice)
        for choice in np.unique(choices, axis=1).T.tolist()
    ]
    return min(executions, key=lambda execution: execution.energy_nj)


def _execution(hardware: Hardware, batch: int, cycles: int, bits: tuple[int, int], choice: Sequence[int]) -> Execution:
    weights, inputs, outputs, compute, macs, sums = choice
    accumulated = sums * PARTIAL_SUM_BITS + outputs
    return Execution(
        hardware=hardware,
        batch=batch,
        compute_cycles=compute,
        stall_cycles=cycles - compute,
        dram_read_bits=weights + inputs + outputs,
        dram_write_bits=outputs,
        wbuf_read_bits=macs * bits[0],
        wbuf_write_bits=weights,
        ibuf_read_bits=macs * bits[1],
        ibuf_write_bits=inputs,
        obuf_read_bits=accumulated,
        obuf_write_bits=accumulated,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tilings:
    """Ways to cut a layer into tiles; T of them. Edge tiles count as whole ones.

    Attributes:
        trips: Turns of each loop over tiles, (5, T).
        indexed: Which loops index weights, inputs and outputs, (3, 5).
        tiles: Bits of a tile of weights, of inputs and of outputs, (3, T).
        compute: Cycles of all tiles, (T,).
        macs: Multiply-accumulate operations of all tiles, (T,).
        sums: Outputs of all tiles, each a partial sum that is read and written, (T,).
    """

    trips: Integers
    indexed: NDArray[np.bool_]
    tiles: Integers
    compute: Integers
    macs: Integers
    sums: Integers

    def take(self, kept: NDArray[np.intp]) -> "_Tilings":
        """Those at some positions."""
        return _Tilings(
            trips=self.trips[:, kept],
            indexed=self.indexed,
            tiles=self.tiles[:, kept],
            compute=self.compute[kept],
            macs=self.macs[kept],
            sums=self.sums[kept],
        )


def _tilings(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> _Tilings:
    """All tilings, whether their tiles fit or not."""
    rows, columns = hardware.rows * fusion_factor(hardware, weight_bits, activation_bits), hardware.columns
    area = loops.kernel**2
    images, side, ins, outs = _tile_sizes(loops, columns)
    positions = images * side**2
    column_turns = _ceil(outs, columns)
    row_turns = area * _ceil(ins, rows) if loops.form == "conv" else _ceil(area * ins, rows)
    patch = area * side**2 if loops.form == "image" else (loops.kernel + (side - 1) * loops.stride) ** 2
    sides = _ceil(loops.out_size, side)
    trips = [
        _ceil(loops.batch, images),
        sides,
        sides,
        _ceil(loops.reduced_channels, ins),
        _ceil(loops.out_channels, outs),
    ]
    tiles = [
        _ceil(area * ins, rows) * rows * outs * weight_bits,
        patch * images * (outs if loops.form == "channelwise" else ins) * activation_bits,
        positions * column_turns * columns * PARTIAL_SUM_BITS,
    ]
    count = np.prod(trips, axis=0)
    return _Tilings(
        trips=np.array(trips),
        indexed=_indexed(loops.form),
        tiles=np.array(tiles),
        compute=count * positions * column_turns * row_turns,
        macs=count * positions * area * ins * outs,
        sums=count * positions * outs,
    )


def _tile_sizes(loops: Loops, columns: int) -> Sequence[Integers]:
    """Images, side, input and output channels of all tiles, four times (T,)."""
    sizes = [
        _doubling(1, loops.batch),
        _doubling(1, loops.out_size),
        _doubling(1, loops.reduced_channels),
        _doubling(1 if loops.form == "image" else columns, loops.out_channels),
    ]
    return [grid.ravel() for grid in np.meshgrid(*sizes, indexing="ij")]


def _doubling(first: int, last: int) -> Integers:
    """first, 2·first, 4·first, … below `last`, and `last`."""
    sizes = [last]
    while first < last:
        sizes.insert(-1, first)
        first *= 2
    return np.array(sizes, dtype=np.int64)


def _ceil(dividend: Any, divisor: Any) -> Any:
    """The quotient of positive integers, rounded up."""
    return -(-dividend // divisor)


def _indexed(form: Form) -> NDArray[np.bool_]:
    inputs = _OUT if form == "channelwise" else _IN
    loops = ((_IN, _OUT), (_BATCH, _WIDTH, _HEIGHT, inputs), (_BATCH, _WIDTH, _HEIGHT, _OUT))
    return np.array([[loop in tensor for loop in range(5)] for tensor in loops])


def _least_cycles(hardware: Hardware, tilings: _Tilings) -> Integers:
    """A lower bound of the cycles of each tiling in any order, (T,).

    The array computes and the first and last tiles cannot be hidden; and every value is moved once at least.
    """
    width = hardware.dram_bits_per_cycle
    hidden_by_none = _ceil(tilings.tiles.sum(axis=0), width) + _ceil(tilings.tiles[2], width)
    once = tilings.tiles * np.where(tilings.indexed[:, :, None], tilings.trips, 1).prod(axis=1)
    least: Integers = np.maximum(tilings.compute + hidden_by_none, _ceil(once.sum(axis=0) + once[2], width))
    return least


def _schedules(hardware: Hardware, tilings: _Tilings) -> tuple[Integers, Integers]:
    """Cycles of each order and tiling, (O, T), and bits that weights, inputs and outputs move, (3, O, T)."""
    width = hardware.dram_bits_per_cycle
    totals, resident = _traffic(np.array(hardware.tile_bits), tilings)
    ends = resident.sum(axis=0), resident[2]  # the first fill and the last drain, which nothing hides
    moved = totals.sum(axis=0) + totals[2]  # outputs are read and written, even before there are any
    streamed = _ceil(moved - ends[0] - ends[1], width)
    cycles: Integers = np.maximum(tilings.compute, streamed) + _ceil(ends[0], width) + _ceil(ends[1], width)
    return cycles, totals


def _traffic(capacities: Integers, tilings: _Tilings) -> tuple[Integers, Integers]:
    """Bits that each tensor moves in each order, and those that its buffer holds at once, twice (3, O, T).

    From the innermost loop outwards, a tensor grows by the loops that index it as long as it fits its buffer, and
    is reused by those that do not. Once it is too large, every further loop fetches it again.
    """
    orders = _orders(*(bool(trips.max() > 1) for trips in tilings.trips))
    totals = np.repeat(tilings.tiles[:, None, :], len(orders), axis=1)
    resident = totals
    fits = np.ones_like(totals, dtype=np.bool_)
    for loop in orders.T:
        indexed = tilings.indexed[:, loop, None]
        grown = totals * tilings.trips[loop]
        totals = np.where(indexed | ~fits, grown, totals)
        fits = fits & (~indexed | (grown <= capacities[:, None, None]))
        resident = np.where(fits, totals, resident)
    return totals, resident


@functools.cache
def _orders(*turning: bool) -> Integers:
    """The orders of the loops that turn more than once, innermost first, (O, loops).

    Loops that turn once change nothing wherever they stand, and neither does swapping width with height, which
    turn equally often.
    """
    loops = [loop for loop, turns in enumerate(turning) if turns]
    orders = itertools.permutations(loops)
    first_width = [order for order in orders if _WIDTH not in order or order.index(_WIDTH) < order.index(_HEIGHT)]
    return np.array(first_width, dtype=np.int64)
