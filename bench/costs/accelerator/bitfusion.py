"""BitFusion: cycles, traffic and energy of a layer on a bit-flexible systolic array.

This is the analytical model of the simulator that was published with the accelerator (Sharma et al., "Bit Fusion:
Bit-Level Dynamically Composable Architecture for Accelerating Deep Neural Networks", ISCA 2018, arXiv:1712.01507;
hsharma35/bitfusion). A layer is cut into tiles that fit half of each buffer, since the other half is being filled
meanwhile. The five loops over tiles can run in any order. The array's cycles depend on the tiles, the traffic to
memory on tiles and order. The model takes the fastest of all tilings and all 120 orders, and among equally fast ones
that of least energy. `docs/bitfusion.md` describes what is modelled, and how exactly.

All counts are exact integers for a whole batch.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.costs.accelerator.hardware import Hardware
from bench.costs.accelerator.tiling import (
    COLUMN,
    PARTIAL_SUM_BITS,
    ROW,
    Integers,
    Loops,
    Tilings,
    ceil_divide,
    tilings_of,
)
from bench.errors import BenchError

_PROBES = 8
"""Number of tilings with the smallest bounds that are evaluated first, to learn how many cycles suffice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """The cost of executing a layer for a whole batch, and its latency and energy for one image.

    Attributes:
        hardware: Accelerator that executes the layer.
        batch: Images per batch.
        compute_cycles: Cycles in which the array computes.
        stall_cycles: Cycles in which the array waits for memory, including the first and the last transfer.
        dram_read_bits, dram_write_bits: Traffic of the memory.
        wbuf_read_bits, wbuf_write_bits, ibuf_read_bits, ibuf_write_bits, obuf_read_bits, obuf_write_bits: Traffic of
            the buffers of weights, inputs and outputs.
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
        """Cycles for the whole batch."""
        return self.compute_cycles + self.stall_cycles

    @property
    def core_energy_nj(self) -> float:
        """Energy of the array for the whole batch."""
        return self.compute_cycles * self.hardware.core_pj_per_cycle / 1000

    @property
    def wbuf_energy_nj(self) -> float:
        """Energy of the buffer of weights for the whole batch."""
        costs = self.hardware
        read = self.wbuf_read_bits * costs.wbuf_read_pj_per_bit
        return (read + self.wbuf_write_bits * costs.wbuf_write_pj_per_bit) / 1000

    @property
    def ibuf_energy_nj(self) -> float:
        """Energy of the buffer of inputs for the whole batch."""
        costs = self.hardware
        read = self.ibuf_read_bits * costs.ibuf_read_pj_per_bit
        return (read + self.ibuf_write_bits * costs.ibuf_write_pj_per_bit) / 1000

    @property
    def obuf_energy_nj(self) -> float:
        """Energy of the buffer of outputs for the whole batch."""
        costs = self.hardware
        read = self.obuf_read_bits * costs.obuf_read_pj_per_bit
        return (read + self.obuf_write_bits * costs.obuf_write_pj_per_bit) / 1000

    @property
    def dram_energy_nj(self) -> float:
        """Energy of the memory for the whole batch."""
        return (self.dram_read_bits + self.dram_write_bits) * self.hardware.dram_pj_per_bit / 1000

    @property
    def energy_nj(self) -> float:
        """Energy for the whole batch."""
        buffers = self.wbuf_energy_nj + self.ibuf_energy_nj + self.obuf_energy_nj
        return self.core_energy_nj + buffers + self.dram_energy_nj

    @property
    def latency_ms(self) -> float:
        """Time per image in ms: the time of the batch divided by its images."""
        return self.cycles * 1000 / self.hardware.frequency_hz / self.batch

    @property
    def energy_mj(self) -> float:
        """Energy per image in mJ."""
        return self.energy_nj * 1e-6 / self.batch


@functools.cache
def execute(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> Execution:
    """Find the fastest execution of a layer, and among equally fast ones that of least energy.

    The result is exact: a tiling is skipped only if a lower bound of its cycles exceeds the cycles of another tiling.

    Args:
        hardware: Accelerator.
        loops: Layer.
        weight_bits: Bits of weights. They are stored and moved as given, and computed as `hardware.min_bits` or more.
        activation_bits: Bits of the layer's inputs, treated like those of weights.

    Raises:
        BenchError: A number of bits is not supported, or no tile fits the buffers.
    """
    tilings = tilings_of(hardware, loops, weight_bits, activation_bits)
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


def _least_cycles(hardware: Hardware, tilings: Tilings) -> Integers:
    """Return a lower bound of the cycles of each tiling in any order, (T,).

    It is the larger of two bounds: the array computes, and the first and last transfers do not overlap with that; and
    every value is moved at least once.
    """
    rate = hardware.dram_bits_per_cycle
    not_hidden = ceil_divide(tilings.tiles.sum(axis=0), rate) + ceil_divide(tilings.tiles[2], rate)
    once = tilings.tiles * np.where(tilings.indexed[:, :, None], tilings.trips, 1).prod(axis=1)
    least: Integers = np.maximum(tilings.compute + not_hidden, ceil_divide(once.sum(axis=0) + once[2], rate))
    return least


def _schedules(hardware: Hardware, tilings: Tilings) -> tuple[Integers, Integers]:
    """Return the cycles of each order and tiling, (O, T), and the traffic of each tensor in bits, (3, O, T)."""
    rate = hardware.dram_bits_per_cycle
    totals, resident = _traffic(np.array(hardware.tile_bits), tilings)
    ends = resident.sum(axis=0), resident[2]  # the first fill and the last drain do not overlap with computing
    moved = totals.sum(axis=0) + totals[2]  # outputs are read and written, also the first time
    streamed = ceil_divide(moved - ends[0] - ends[1], rate)
    cycles: Integers = np.maximum(tilings.compute, streamed) + ceil_divide(ends[0], rate) + ceil_divide(ends[1], rate)
    return cycles, totals


def _traffic(capacities: Integers, tilings: Tilings) -> tuple[Integers, Integers]:
    """Return the traffic of each tensor in each order, and the bits that its buffer holds at once, both (3, O, T).

    From the innermost loop outwards, the part of a tensor in its buffer grows with every loop that indexes the
    tensor, as long as it fits, and is reused by the other loops. Once it does not fit, every further loop fetches the
    tensor again.
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
def _orders(*repeated: bool) -> Integers:
    """List the orders of the loops that run more than once, innermost first, (O, loops).

    Loops that run once have no effect in any position. Neither has exchanging columns and rows, which have equally
    many iterations.
    """
    loops = [loop for loop, runs_again in enumerate(repeated) if runs_again]
    orders = itertools.permutations(loops)
    column_first = [order for order in orders if COLUMN not in order or order.index(COLUMN) < order.index(ROW)]
    return np.array(column_first, dtype=np.int64)
