"""BitFusion: against the public simulator, against a literal reference, and what must hold for every layer.

Figures of the simulator (hsharma35/bitfusion, commit 04ec1c8): `VECTORS`, the totals of networks, and every distinct
layer of ResNet-18 in `bitfusion_resnet18.csv`. Counts are bits and cycles of the batch, energies nJ of the batch;
latency (ms) and `energy_mj` are for one image.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.costs.accelerator.bitfusion import Execution, execute
from bench.costs.accelerator.hardware import Hardware, fusion_factor, hardware_names, read_hardware
from bench.costs.accelerator.tiling import Form, Loops
from bench.errors import BenchError

BF_E = read_hardware("bf_e")

# (kernel, out_size, stride, in_channels, out_channels), form, weight bits, activation bits, cycles, compute cycles,
# DRAM bits read, DRAM bits written, energy. Layers of MobileNetV2, ResNet-18 and ResNet-50.
Vector = tuple[tuple[int, int, int, int, int], Form, int, int, int, int, int, int, float]
VECTORS: Sequence[Vector] = [
    ((3, 112, 2, 3, 32), "image", 8, 8, 2_366_678, 401_408, 248_881_152, 205_520_896, 7071148.3),
    ((3, 112, 1, 32, 32), "conv", 8, 8, 3_613_121, 3_612_672, 411_115_520, 205_520_896, 11362170.1),
    ((1, 112, 1, 32, 16), "conv", 8, 8, 2_408_470, 401_408, 256_905_216, 205_520_896, 7135815.4),
    ((1, 112, 1, 16, 96), "conv", 8, 8, 6_556_395, 602_112, 642_265_088, 616_562_688, 19357275.3),
    ((3, 56, 2, 96, 96), "conv", 8, 8, 8_129_752, 8_128_512, 809_902_080, 462_422_016, 23825134.7),
    ((3, 56, 1, 144, 144), "conv", 8, 8, 20_322_246, 20_321_280, 2_988_081_152, 256_901_120, 60544078.7),
    ((1, 14, 1, 64, 384), "conv", 8, 8, 410_795, 150_528, 40_337_408, 38_535_168, 1276697.5),
    ((3, 14, 1, 384, 384), "conv", 8, 8, 8_129_345, 8_128_512, 935_460_864, 462_422_016, 25721949.1),
    ((1, 14, 1, 384, 64), "conv", 8, 8, 151_702, 150_528, 16_252_928, 6_422_528, 427830.3),
    ((1, 7, 1, 160, 960), "conv", 8, 8, 307_308, 235_200, 34_918_400, 24_084_480, 1023735.1),
    ((3, 7, 1, 960, 960), "conv", 8, 8, 12_701_570, 12_700_800, 1_384_366_080, 24_084_480, 28538999.5),
    ((1, 7, 1, 960, 160), "conv", 8, 8, 236_798, 235_200, 35_348_480, 4_014_080, 753086.8),
    ((1, 7, 1, 320, 1280), "conv", 8, 8, 628_297, 627_200, 75_530_240, 32_112_640, 1981261.6),
    ((1, 1, 1, 1280, 1000), "conv", 8, 8, 66_903, 40_960, 12_320_768, 524_288, 216654.8),
    ((1, 1, 1, 62720, 1000), "conv", 8, 8, 3_016_023, 2_007_040, 578_551_808, 524_288, 9858439.3),
    ((3, 14, 1, 384, 384), "conv", 4, 8, 4_065_537, 4_064_256, 467_730_432, 231_211_008, 13851055.9),
    ((3, 14, 1, 384, 384), "conv", 8, 4, 4_065_473, 4_064_256, 473_038_848, 231_211_008, 13296432.5),
    ((3, 14, 1, 384, 384), "conv", 4, 4, 2_436_097, 2_032_128, 352_124_928, 115_605_504, 8890484.3),
    ((3, 14, 1, 384, 384), "conv", 2, 2, 887_014, 884_736, 112_066_560, 50_331_648, 3540322.0),
    ((1, 112, 1, 16, 96), "conv", 4, 4, 6_489_558, 602_112, 629_432_320, 616_562_688, 19063637.7),
    ((1, 112, 1, 16, 96), "conv", 2, 2, 6_456_235, 602_112, 623_034_368, 616_562_688, 18917095.9),
    ((1, 7, 1, 960, 160), "conv", 4, 4, 101_057, 70_560, 14_585_856, 4_816_896, 356429.7),
    ((3, 14, 1, 384, 384), "conv", 3, 3, 2_033_750, 2_032_128, 206_290_944, 115_605_504, 6350065.3),
    ((3, 14, 1, 384, 384), "conv", 6, 6, 8_129_012, 8_128_512, 1_277_165_568, 38_535_168, 23832767.2),
    ((7, 112, 2, 3, 64), "image", 8, 8, 5_511_425, 4_014_080, 647_151_616, 411_041_792, 18151956.9),
    ((3, 28, 2, 64, 128), "conv", 8, 8, 1_807_000, 1_806_336, 233_406_464, 102_760_448, 6101935.2),
    ((3, 7, 1, 512, 512), "conv", 8, 8, 3_613_442, 3_612_672, 399_769_600, 12_845_056, 8298227.5),
    ((1, 14, 1, 1024, 256), "conv", 8, 8, 1_607_169, 1_605_632, 156_237_824, 51_380_224, 4046081.5),
    ((1, 14, 1, 256, 1024), "conv", 8, 8, 1_607_382, 1_605_632, 156_237_824, 102_760_448, 4821859.9),
    ((1, 1, 1, 2048, 1000), "conv", 8, 8, 99_671, 65_536, 18_087_936, 1_048_576, 324893.5),
]

# ms and mJ per image; the same bits for all layers, or ("fl8") 8 for the first and the last one.
TOTALS = {
    "mobilenet_v2": {
        "8/8": ("24.571", "36.410"),
        "4/8": ("14.271", "23.327"),
        "8/4": ("14.174", "22.205"),
        "4/4": ("9.873", "16.545"),
        "fl8 4/4": ("9.891", "16.579"),
        "2/2": ("6.546", "10.864"),
        "fl8 2/2": ("6.573", "10.913"),
    },
    "resnet18": {
        "8/8": ("7.374", "10.978"),
        "4/8": ("4.108", "6.829"),
        "8/4": ("4.023", "6.285"),
        "4/4": ("2.658", "4.564"),
        "fl8 4/4": ("2.736", "4.758"),
        "2/2": ("1.978", "3.293"),
        "fl8 2/2": ("2.095", "3.574"),
    },
    "resnet50": {
        "8/8": ("18.054", "26.687"),
        "4/8": ("11.882", "19.945"),
        "8/4": ("11.685", "18.890"),
        "4/4": ("9.556", "15.584"),
        "fl8 4/4": ("9.639", "15.785"),
        "2/2": ("8.116", "12.652"),
        "fl8 2/2": ("8.240", "12.945"),
    },
}


def conv(kernel: int, out_size: int, stride: int, in_channels: int, out_channels: int, form: Form = "conv") -> Loops:
    return Loops(
        kernel=kernel,
        out_size=out_size,
        stride=stride,
        in_channels=in_channels,
        out_channels=out_channels,
        form=form,
    )


# --- the simulator's figures ---


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_layers_cost_what_the_simulator_says(vector: Vector) -> None:
    sizes, form, weight_bits, activation_bits, *expected = vector
    found = execute(BF_E, conv(*sizes, form), weight_bits, activation_bits)
    counts = [found.cycles, found.compute_cycles, found.dram_read_bits, found.dram_write_bits]
    assert [*counts, round(found.energy_nj, 1)] == expected


def test_every_column_of_resnet18_is_the_simulators() -> None:
    with Path(__file__).with_name("bitfusion_resnet18.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 144
    for row in rows:
        sizes = ("kernel", "out_size", "stride", "in_channels", "out_channels", "batch")
        loops = Loops(**{key: int(row[key]) for key in sizes}, form=row["form"])  # type: ignore[arg-type]
        found = execute(BF_E, loops, int(row["weight_bits"]), int(row["activation_bits"]))
        for key in list(row)[10:]:
            if key.endswith(("_bits", "cycles")):
                assert getattr(found, key) == int(row[key]), (row, key)
            else:  # printed with four decimals
                assert getattr(found, key) == pytest.approx(float(row[key]), rel=1e-6, abs=5.1e-5), (row, key)


@cache
def network(name: str) -> tuple[tuple[Loops, ...], frozenset[int]]:
    """The layers of a torchvision model, groups ignored, and the positions of those that have groups."""
    found: list[Loops] = []
    grouped: set[int] = set()

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            found.append(conv(1, 1, 1, module.in_features, module.out_features))
        elif isinstance(module, nn.Conv2d):
            if module.groups > 1:
                grouped.add(len(found))
            sizes = module.kernel_size[0], output.shape[-1], module.stride[0], module.in_channels, module.out_channels
            found.append(conv(*sizes, "conv" if found else "image"))

    with torch.device("meta"):
        model = getattr(torchvision.models, name)().eval()
        for module in model.modules():
            module.register_forward_hook(record)
        model(torch.zeros(1, 3, 224, 224))
    return tuple(found), frozenset(grouped)


def mobilenet(depthwise: Callable[[Loops], Loops]) -> list[Loops]:
    layers, grouped = network("mobilenet_v2")
    return [depthwise(loops) if index in grouped else loops for index, loops in enumerate(layers)]


def total(
    layers: Sequence[Loops], bits: tuple[int, int] = (8, 8), edges: tuple[int, int] | None = None, on: Hardware = BF_E
) -> tuple[int, float, float]:
    """Cycles of a batch, ms and mJ of an image."""
    pairs = [bits] * len(layers)
    pairs[0] = pairs[-1] = edges or bits
    found = [execute(on, loops, *pair) for loops, pair in zip(layers, pairs, strict=True)]
    return sum(one.cycles for one in found), sum(one.latency_ms for one in found), sum(one.energy_mj for one in found)


@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name, row in TOTALS.items() for bits in row])
def test_totals_of_networks_are_the_simulators(name: str, bits: str) -> None:
    weight_bits, activation_bits = map(int, bits.removeprefix("fl8 ").split("/"))
    edges = (8, 8) if bits.startswith("fl8") else None
    _, latency, energy = total(network(name)[0], (weight_bits, activation_bits), edges)
    assert (f"{latency:.3f}", f"{energy:.3f}") == TOTALS[name][bits]


@pytest.mark.parametrize(("name", "cycles"), [("resnet18", 58992481), ("resnet50", 144432432)])
def test_cycles_of_residual_networks(name: str, cycles: int) -> None:
    assert total(network(name)[0])[0] == cycles


def test_mobilenet_v2_with_dense_depthwise_layers_costs_what_papers_report() -> None:
    """24.9 ms and 37.0 mJ need the classifier to read a map that was not pooled, 7 · 7 · 1280 inputs."""
    layers = mobilenet(lambda loops: loops)
    cycles, latency, energy = total(layers)
    assert (cycles, round(latency, 4), round(energy, 4)) == (196571950, 24.5715, 36.4100)
    cycles, latency, energy = total([*layers[:-1], replace(layers[-1], in_channels=62720)])
    assert (cycles, round(latency, 3), round(energy, 4)) == (199521070, 24.940, 37.0126)


def test_first_and_last_layer_of_mobilenet_v2_take_the_published_time() -> None:
    layers, _ = network("mobilenet_v2")
    assert execute(BF_E, layers[0], 8, 8).latency_ms == pytest.approx(0.29583475, rel=1e-12)
    assert execute(BF_E, layers[-1], 8, 8).latency_ms == pytest.approx(0.008362875, rel=1e-12)


@pytest.mark.parametrize(
    ("bits", "latency", "energy"), [(8, "5.251", "8.054"), (4, "4.914", "7.433"), (2, "4.821", "7.232")]
)
def test_mobilenet_v2_with_one_input_channel_for_depthwise_layers(bits: int, latency: str, energy: str) -> None:
    layers = mobilenet(lambda loops: replace(loops, in_channels=1))
    _, ms, mj = total(layers, (bits, bits))
    assert (f"{ms:.3f}", f"{mj:.3f}") == (latency, energy)


@pytest.mark.parametrize(
    ("name", "latency", "energy"),
    [("bf_s", "11.27", "108.2"), ("conf_8x8", "174.5", "121.3"), ("bf_e_bw4096_x1", "22.09", "142.9")],
)
def test_mobilenet_v2_on_other_hardware(name: str, latency: str, energy: str) -> None:
    _, ms, mj = total(mobilenet(lambda loops: loops), on=read_hardware(name))
    assert (f"{ms:.4g}", f"{mj:.4g}") == (latency, energy)


def test_mobilenet_v2_one_image_at_a_time() -> None:
    _, latency, energy = total([replace(loops, batch=1) for loops in network("mobilenet_v2")[0]])
    assert (f"{latency:.2f}", f"{energy:.2f}") == ("24.81", "35.91")


# --- a literal reference: every tiling, every order, one at a time ---


def halves(first: int, last: int) -> Iterator[int]:
    size = first
    while size < last:
        yield size
        size *= 2
    yield last


@dataclass
class Tile:
    """One tiling: trips of the loops, and what a tile of weights, inputs and outputs has, in bits."""

    trips: dict[str, int]
    bits: tuple[int, int, int]
    compute: int
    macs: int
    sums: int


def tiles(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> Iterator[Tile]:
    n = hardware.rows * (8 // max(weight_bits, 2)) * (8 // max(activation_bits, 2))
    m, k = hardware.columns, loops.kernel
    depth = 1 if loops.form == "channelwise" else loops.in_channels
    first = 1 if loops.form == "image" else m
    for b, o in itertools.product(halves(1, loops.batch), halves(1, loops.out_size)):
        for i, c in itertools.product(halves(1, depth), halves(first, loops.out_channels)):
            sides = ceil(loops.out_size / o)
            trips = {
                "b": ceil(loops.batch / b),
                "x": sides,
                "y": sides,
                "i": ceil(depth / i),
                "o": ceil(loops.out_channels / c),
            }
            count = prod(trips.values())
            if loops.form == "conv":
                steps, inputs = k * k * ceil(i / n), (k + (o - 1) * loops.stride) ** 2 * i
            elif loops.form == "image":
                steps, inputs = ceil(k * k * i / n), o * o * k * k * i
            else:
                steps, inputs = ceil(k * k / n), (k + (o - 1) * loops.stride) ** 2 * c
            yield Tile(
                trips,
                (
                    ceil(k * k * i / n) * n * c * weight_bits,
                    inputs * b * activation_bits,
                    o * o * ceil(c / m) * m * b * 32,
                ),
                count * b * o * o * ceil(c / m) * steps,
                count * b * o * o * k * k * i * c,
                count * b * o * o * c,
            )


def walk(size: int, capacity: int, indexed: str, order: Sequence[str], trips: dict[str, int]) -> tuple[int, int]:
    """Traffic of a tensor in bits, and the most that its buffer holds at once."""
    largest, resident = size, True
    for loop in order:
        if not resident:
            size *= trips[loop]
        elif loop in indexed:
            size *= trips[loop]
            if size <= capacity:
                largest = size
            else:
                resident = False
    return size, largest


def reference(hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int) -> dict[str, Any] | None:
    """The best execution by exhaustive search; `None` if no tile fits."""
    best: tuple[int, float, dict[str, Any]] | None = None
    buffers = [8 * size // 2 for size in (hardware.wbuf_bytes, hardware.ibuf_bytes, hardware.obuf_bytes)]
    indexed = ("io", "bxyo" if loops.form == "channelwise" else "bxyi", "bxyo")
    for tile in tiles(hardware, loops, weight_bits, activation_bits):
        if any(bits > buffer for bits, buffer in zip(tile.bits, buffers, strict=True)):
            continue
        for order in itertools.permutations("bxyio"):
            walks = [walk(tile.bits[t], buffers[t], indexed[t], order, tile.trips) for t in range(3)]
            (w, m_w), (a, m_a), (out, m_o) = walks
            filled, rate = m_w + m_a + m_o, hardware.dram_bits_per_cycle
            edge = -(-filled // rate) - (-m_o // rate)
            streamed = -(-(w + a + 2 * out - filled - m_o) // rate)
            cycles = tile.compute + max(0, streamed - tile.compute) + edge
            if best is not None and cycles > best[0]:
                continue
            found: dict[str, Any] = {
                "compute_cycles": tile.compute,
                "stall_cycles": cycles - tile.compute,
                "dram_read_bits": w + a + out,
                "dram_write_bits": out,
                "wbuf_read_bits": tile.macs * weight_bits,
                "wbuf_write_bits": w,
                "ibuf_read_bits": tile.macs * activation_bits,
                "ibuf_write_bits": a,
                "obuf_read_bits": tile.sums * 32 + out,
                "obuf_write_bits": tile.sums * 32 + out,
            }
            energy = energy_of(hardware, found)
            if best is None or (cycles, energy) < best[:2]:
                best = cycles, energy, found
    return None if best is None else {"cycles": best[0], "energy": best[1], **best[2]}


def energy_of(hardware: Hardware, found: dict[str, Any]) -> float:
    picojoules = found["compute_cycles"] * hardware.core_pj_per_cycle
    for buffer, direction in itertools.product(("wbuf", "ibuf", "obuf"), ("read", "write")):
        cost = getattr(hardware, f"{buffer}_{direction}_pj_per_bit")
        picojoules += found[f"{buffer}_{direction}_bits"] * cost
    picojoules += (found["dram_read_bits"] + found["dram_write_bits"]) * hardware.dram_pj_per_bit
    return float(picojoules / 1000)


small_hardware = st.builds(
    lambda rows, columns, width, wbuf, ibuf, obuf: replace(
        BF_E,
        name="small",
        rows=rows,
        columns=columns,
        dram_bits_per_cycle=width,
        wbuf_bytes=wbuf,
        ibuf_bytes=ibuf,
        obuf_bytes=obuf,
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 7, 24, 64, 500]),
    st.integers(100, 1500),
    st.integers(100, 1500),
    st.integers(100, 1500),
)


def layers_of(kernels: Sequence[int], out_size: int, channels: int, batches: Sequence[int]) -> st.SearchStrategy[Loops]:
    def build(form: Form, kernel: int, out_size: int, stride: int, inputs: int, outputs: int, batch: int) -> Loops:
        outputs = inputs if form == "channelwise" else outputs
        return replace(conv(kernel, out_size, stride, inputs, outputs, form), batch=batch)

    forms: Sequence[Form] = ("conv", "image", "channelwise")
    return st.builds(
        build,
        st.sampled_from(forms),
        st.sampled_from(kernels),
        st.integers(1, out_size),
        st.integers(1, 2),
        st.integers(1, channels),
        st.integers(1, channels),
        st.sampled_from(batches),
    )


small_layers = layers_of((1, 2, 3), 7, 13, (1, 2, 3, 5))
large_layers = layers_of((1, 3, 5, 7), 56, 300, (1, 4, 16))
all_bits = st.integers(1, 8)


@settings(max_examples=300, deadline=None)
@given(hardware=small_hardware, loops=small_layers, weight_bits=all_bits, activation_bits=all_bits)
def test_the_pruned_search_finds_what_the_exhaustive_one_finds(
    hardware: Hardware, loops: Loops, weight_bits: int, activation_bits: int
) -> None:
    expected = reference(hardware, loops, weight_bits, activation_bits)
    if expected is None:
        with pytest.raises(BenchError, match="no tile"):
            execute(hardware, loops, weight_bits, activation_bits)
        return
    found = execute(hardware, loops, weight_bits, activation_bits)
    assert found.energy_nj == pytest.approx(expected.pop("energy"), rel=1e-12)
    assert {key: getattr(found, key) for key in expected} == expected


# --- what must hold for every layer ---


@settings(max_examples=100, deadline=None)
@given(loops=large_layers, weight_bits=all_bits, activation_bits=all_bits)
def test_nothing_is_cheaper_than_the_work_and_the_values_themselves(
    loops: Loops, weight_bits: int, activation_bits: int
) -> None:
    found = execute(BF_E, loops, weight_bits, activation_bits)
    outputs = loops.batch * loops.out_size**2 * loops.out_channels
    weights = loops.kernel**2 * loops.reduced_channels * loops.out_channels
    macs = outputs * loops.kernel**2 * loops.reduced_channels
    units = BF_E.rows * BF_E.columns * fusion_factor(BF_E, weight_bits, activation_bits)
    assert found.compute_cycles * units >= macs
    assert found.wbuf_read_bits >= macs * weight_bits
    assert found.ibuf_read_bits >= macs * activation_bits
    assert found.wbuf_write_bits >= weights * weight_bits
    assert found.dram_write_bits >= outputs * 32
    assert found.dram_read_bits == found.wbuf_write_bits + found.ibuf_write_bits + found.dram_write_bits
    assert found.cycles * BF_E.dram_bits_per_cycle >= found.dram_read_bits + found.dram_write_bits
    if loops.stride <= loops.kernel:
        side = (loops.out_size - 1) * loops.stride + loops.kernel
        assert found.ibuf_write_bits >= loops.batch * side**2 * loops.in_channels * activation_bits


@settings(max_examples=30, deadline=None)
@given(loops=large_layers, weight_bits=all_bits, activation_bits=all_bits)
def test_a_wider_memory_is_never_slower(loops: Loops, weight_bits: int, activation_bits: int) -> None:
    wide = read_hardware("bf_e_bw4096_x1")
    narrow = execute(BF_E, loops, weight_bits, activation_bits)
    assert execute(wide, loops, weight_bits, activation_bits).cycles <= narrow.cycles


def test_depthwise_layers_of_mobilenet_v2_are_cheaper_channelwise_than_dense() -> None:
    layers, grouped = network("mobilenet_v2")
    for loops, bits in itertools.product([layers[index] for index in grouped], (2, 4, 8)):
        dense, own = execute(BF_E, loops, bits, bits), execute(BF_E, replace(loops, form="channelwise"), bits, bits)
        assert (own.cycles < dense.cycles, own.energy_nj < dense.energy_nj) == (True, True)


def test_mobilenet_v2_with_channelwise_depthwise_layers() -> None:
    """Not the simulator's figures: they fix the definition, so that it does not change unnoticed."""
    _, latency, energy = total(mobilenet(lambda loops: replace(loops, form="channelwise")))
    assert (f"{latency:.3f}", f"{energy:.3f}") == ("5.813", "8.729")


def test_channelwise_by_hand() -> None:
    """The layer fits one tile: 9 of 16 rows and 24 of 32 columns are used, and every operand is moved once."""
    found = execute(BF_E, replace(conv(3, 4, 1, 24, 24, form="channelwise"), batch=2), 8, 8)
    assert found.compute_cycles == 2 * 4 * 4
    assert found.wbuf_write_bits == 16 * 24 * 8
    assert found.ibuf_write_bits == 2 * 6 * 6 * 24 * 8
    assert found.dram_write_bits == 2 * 4 * 4 * 32 * 32
    assert found.ibuf_read_bits == found.wbuf_read_bits == 2 * 4 * 4 * 24 * 9 * 8


def test_bits_below_the_least_precision_compute_like_it_and_are_stored_as_they_are() -> None:
    loops = conv(1, 1, 1, 256, 32)
    one, two = execute(BF_E, loops, 1, 8), execute(BF_E, loops, 2, 8)
    assert one.compute_cycles == two.compute_cycles
    assert 2 * one.wbuf_write_bits == two.wbuf_write_bits == 2 * 256 * 32


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "factor"),
    [(8, 8, 1), (8, 4, 2), (4, 8, 2), (4, 4, 4), (8, 2, 4), (2, 8, 4), (4, 2, 8), (2, 2, 16)],
)
def test_fusion_factors(weight_bits: int, activation_bits: int, factor: int) -> None:
    assert fusion_factor(BF_E, weight_bits, activation_bits) == factor


@pytest.mark.parametrize(("bits", "like"), [((3, 3), (4, 4)), ((5, 5), (8, 8)), ((6, 7), (8, 8)), ((1, 1), (2, 2))])
def test_bits_between_compute_like_the_next_ones(bits: tuple[int, int], like: tuple[int, int]) -> None:
    assert fusion_factor(BF_E, *bits) == fusion_factor(BF_E, *like)


def test_fusion_factors_follow_the_hardwares_precisions() -> None:
    wide = replace(BF_E, min_bits=4, max_bits=16)
    assert [fusion_factor(wide, *bits) for bits in ((16, 16), (16, 8), (8, 8), (4, 4), (2, 3))] == [1, 2, 4, 16, 16]


def test_energy_and_latency_are_sums_and_shares() -> None:
    found: Execution = execute(BF_E, conv(3, 14, 1, 384, 384), 4, 8)
    assert found.energy_nj == pytest.approx(energy_of(BF_E, asdict(found)), rel=1e-12)
    assert found.latency_ms == pytest.approx(found.cycles / 5e8 * 1000 / 16)
    assert found.energy_mj == pytest.approx(found.energy_nj / 1e6 / 16)


# --- hardware ---


def test_hardware_comes_with_the_harness() -> None:
    names = ["bf_e", "bf_e_bw4096_x1", "bf_e_bw4096_x2", "bf_e_bw4096_x4", "bf_e_bw4096_x8", "bf_s", "conf_8x8"]
    assert hardware_names() == names
    for name in names:
        hardware = read_hardware(name)
        assert (hardware.name, hardware.min_bits, hardware.max_bits, hardware.dram_pj_per_bit) == (name, 2, 8, 15)
        per_unit = hardware.core_pj_per_cycle / (hardware.rows * hardware.columns)
        assert per_unit == pytest.approx(7.347 / 16)  # the synthesised 4 × 4 array


def text_of(hardware: Hardware, **changes: str) -> str:
    values = {key: repr(value) for key, value in asdict(hardware).items() if key != "name"} | changes
    return "\n".join(f"{key} = {value}" for key, value in values.items() if value)


def test_hardware_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text_of(BF_E, rows="8", dram_pj_per_bit="6"))
    assert read_hardware(path) == read_hardware(str(path)) == replace(BF_E, name="mine", rows=8, dram_pj_per_bit=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ""}, "lacks rows$"),
        ({"row": "3"}, r"unknown key in the hardware configuration '.*': 'row'|did you mean 'rows'"),
        ({"rows": "0"}, "rows is 0; allowed: a whole number above 0"),
        ({"rows": "1.5"}, r"rows is 1\.5; allowed: a whole number above 0"),
        ({"rows": "true"}, "rows is True; allowed: a whole number above 0"),
        ({"rows": "'many'"}, "rows is 'many'; allowed: a whole number above 0"),
        ({"dram_pj_per_bit": "-1.0"}, r"dram_pj_per_bit is -1\.0; allowed: a number above 0"),
        ({"dram_pj_per_bit": "nan"}, "dram_pj_per_bit is nan; allowed: a number above 0"),
        ({"dram_pj_per_bit": "inf"}, "dram_pj_per_bit is inf; allowed: a number above 0"),
        ({"min_bits": "9"}, "min_bits is 9; allowed: at most max_bits, 8"),
        ({"rows": "= 3"}, "is not valid TOML"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text_of(BF_E, **changes))
    with pytest.raises(BenchError, match=message) as error:
        read_hardware(path)
    assert "\n" not in str(error.value)


def test_hardware_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="unknown hardware 'bfe': did you mean 'bf_e'"):
        read_hardware("bfe")
    with pytest.raises(BenchError, match=r"cannot read the hardware configuration .*No such file"):
        read_hardware(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(BenchError, match="is not valid TOML: no UTF-8 text"):
        read_hardware(tmp_path / "bytes.toml")


# --- refusals ---


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "what"), [(16, 8, "weight_bits"), (8, 0, "activation_bits")]
)
def test_bits_that_the_units_lack_are_refused(weight_bits: int, activation_bits: int, what: str) -> None:
    with pytest.raises(BenchError, match=rf"{what} is (16|0); allowed on bf_e: 1 to 8"):
        execute(BF_E, conv(1, 1, 1, 8, 8), weight_bits, activation_bits)


def test_a_layer_that_fits_no_buffer_is_refused() -> None:
    tiny = replace(BF_E, name="tiny", wbuf_bytes=64)
    with pytest.raises(BenchError, match="half the buffers of tiny: weights 64, inputs 32768, outputs 16384 bytes"):
        execute(tiny, conv(3, 4, 1, 8, 8), 8, 8)


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(BenchError, match="in_channels of a layer is 0; allowed: 1 or more"):
        conv(1, 1, 1, 0, 8)
    with pytest.raises(BenchError, match="channelwise layer has 4 inputs and 8 outputs"):
        conv(3, 4, 1, 4, 8, form="channelwise")
