"""Ways to cut a layer into tiles that fit the accelerator's buffers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.costs.accelerator.hardware import Hardware, fusion_factor
from bench.errors import BenchError

Form = Literal["conv", "image", "channelwise"]
Integers = NDArray[np.int64]

PARTIAL_SUM_BITS = 32
"""Bits of an output, on chip and in memory, independent of the operands' bits."""

BATCH, COLUMN, ROW, IN, OUT = range(5)
"""The loops over tiles, in the order of the rows of `Tilings.trips`: images, positions, input and output channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loops:
    """One layer as loops that the accelerator executes.

    Forms:

    * "conv": a convolution without groups. The array computes one kernel position at a time, with input channels on
      the rows and output channels on the columns. A linear layer has kernel, out_size and stride 1.
    * "image": a convolution that reads the image, by im2col. Kernel positions and input channels together are on the
      rows. The memory holds and sends the unfolded input: kernel² values for each output position and channel.
    * "channelwise": a depthwise convolution, in_channels = out_channels. The kernel² positions of one channel are on
      the rows and channels on the columns; each column reads the inputs of its own channel. A tile of c channels and
      o × o positions of b images takes b·o²·⌈c/columns⌉·⌈kernel²/rows⌉ cycles (rows after fusion). It holds the
      c filters, padded to whole rows as in the other forms, and (kernel + (o − 1)·stride)²·c·b input values, so that
      memory is read without unfolding. Inputs are indexed by the loop over channels as well as by those over images
      and positions; there is no loop over input channels. Channel tiles are those of "conv". The published
      accelerator has no such mode: its columns share their inputs.

    Attributes:
        kernel: Side of the square kernel.
        out_size: Side of the square output.
        stride: Stride of the kernel; the input's side is (out_size − 1)·stride + kernel, padding included.
        in_channels, out_channels: Numbers of channels.
        batch: Images per batch.
        form: Arrangement of the layer on the array.

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
        """Number of input channels that one output depends on."""
        return 1 if self.form == "channelwise" else self.in_channels


@dataclass(frozen=True, kw_only=True, slots=True)
class Tilings:
    """T ways to cut a layer into tiles. Tiles at the edge count as whole ones.

    Attributes:
        trips: Iterations of each loop over tiles, (5, T).
        indexed: Mask of the loops that index weights, inputs and outputs, (3, 5).
        tiles: Size in bits of a tile of weights, of inputs and of outputs, (3, T).
        compute: Cycles of computing, all tiles together, (T,).
        macs: Multiply-accumulate operations, all tiles together, (T,).
        sums: Partial sums that are read and written, all tiles together, (T,).
    """

    trips: Integers
    indexed: NDArray[np.bool_]
    tiles: Integers
    compute: Integers
    macs: Integers
    sums: Integers

    def take(self, kept: NDArray[np.intp]) -> "Tilings":
        """Return the tilings at the given positions."""
        return Tilings(
            trips=self.trips[:, kept],
            indexed=self.indexed,
            tiles=self.tiles[:, kept],
            compute=self.compute[kept],
            macs=self.macs[kept],
            sums=self.sums[kept],
        )


def tilings_of(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> Tilings:
    """List all tilings, also those whose tiles do not fit the buffers."""
    rows, columns = hardware.rows * fusion_factor(hardware, weight_bits, activation_bits), hardware.columns
    area = loops.kernel**2
    images, side, ins, outs = _tile_sizes(loops, columns)
    positions = images * side**2
    column_passes = ceil_divide(outs, columns)
    row_passes = area * ceil_divide(ins, rows) if loops.form == "conv" else ceil_divide(area * ins, rows)
    patch = area * side**2 if loops.form == "image" else (loops.kernel + (side - 1) * loops.stride) ** 2
    sides = ceil_divide(loops.out_size, side)
    trips = [
        ceil_divide(loops.batch, images),
        sides,
        sides,
        ceil_divide(loops.reduced_channels, ins),
        ceil_divide(loops.out_channels, outs),
    ]
    tiles = [
        ceil_divide(area * ins, rows) * rows * outs * weight_bits,
        patch * images * (outs if loops.form == "channelwise" else ins) * activation_bits,
        positions * column_passes * columns * PARTIAL_SUM_BITS,
    ]
    count = np.prod(trips, axis=0)
    return Tilings(
        trips=np.array(trips),
        indexed=_indexed(loops.form),
        tiles=np.array(tiles),
        compute=count * positions * column_passes * row_passes,
        macs=count * positions * area * ins * outs,
        sums=count * positions * outs,
    )


def _tile_sizes(loops: Loops, columns: int) -> Sequence[Integers]:
    """Return images, side, input channels and output channels of each tiling's tiles, each of shape (T,)."""
    sizes = [
        _doubling(1, loops.batch),
        _doubling(1, loops.out_size),
        _doubling(1, loops.reduced_channels),
        _doubling(1 if loops.form == "image" else columns, loops.out_channels),
    ]
    return [grid.ravel() for grid in np.meshgrid(*sizes, indexing="ij")]


def _doubling(first: int, last: int) -> Integers:
    """Return first, 2·first, 4·first, … below `last`, and `last`."""
    sizes = [last]
    while first < last:
        sizes.insert(-1, first)
        first *= 2
    return np.array(sizes, dtype=np.int64)


def ceil_divide(dividend: Any, divisor: Any) -> Any:
    """Divide positive integers and round up."""
    return -(-dividend // divisor)


def _indexed(form: Form) -> NDArray[np.bool_]:
    inputs = OUT if form == "channelwise" else IN
    loops = ((IN, OUT), (BATCH, COLUMN, ROW, inputs), (BATCH, COLUMN, ROW, OUT))
    return np.array([[loop in tensor for loop in range(5)] for tensor in loops])
