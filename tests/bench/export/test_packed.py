"""The packed form: exact codes, exact integers, and as many bytes of weights as the cost counter counts."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.compression.compress import QuantizedLayer
from bench.costs.counter import price
from bench.errors import BenchError
from bench.export import executor, packed
from bench.export.executor import PackedNetwork, unpack
from bench.export.graph import program
from bench.export.graph.border import BorderMap
from bench.export.graph.operations import Graph, Layer, Quantize, border_map
from bench.export.graph.reading import read_graph
from bench.export.packed import fixed_point, pack, packed_files, packed_network, parts
from bench.models.safetensors import read_safetensors
from tests.bench.export.integers import execute
from tests.bench.export.networks import CASES, UNIT, Sample, Shifting, ran, sample


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)  # modules of the cases draw their weights
    return CASES[request.param]()


def test_codes_and_logits_are_those_of_exact_arithmetic(case: Sample) -> None:
    logits, seen = ran(packed_network(case.graph), case.images)
    exact, codes = case.exact()
    assert codes.keys() == {quantizer.name for quantizer in case.graph.quantizers}
    assert {name: int((seen[name] != values).sum()) for name, values in codes.items()} == dict.fromkeys(codes, 0)
    np.testing.assert_allclose(logits, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet8, 1 and 3 bits", "shifting", "inverted residuals", "tokens"])
def test_the_executor_equals_the_integer_reference_bit_for_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    content = packed_network(case.graph)
    _, seen = ran(content, case.images[:1])
    (tmp_path / "network.safetensors").write_bytes(content)
    tensors = read_safetensors(tmp_path / "network.safetensors")  # the harness's own reader checks the layout
    program = PackedNetwork(content).program
    reference = execute(program, tensors, case.images[:1])
    del reference["image"]
    for tensor, values in reference.items():
        np.testing.assert_array_equal(seen[tensor], values.numpy(), err_msg=tensor)
    assert reference.keys() == seen.keys()


def test_the_weights_have_exactly_the_counted_bytes(case: Sample) -> None:
    counted = sum(layer.weight_memory_bits for layer in price(case.shape, case.policy).layers)
    assert parts(packed_network(case.graph))["weights"] == math.ceil(counted / 8)


def test_numbers_have_the_sizes_that_the_packing_allows(case: Sample) -> None:
    writer = packed._Writer(case.graph)
    _, seen = ran(packed_network(case.graph), case.images)
    assert all(np.abs(values).max() <= writer._bounds[name] for name, values in seen.items())


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 40)), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_unpacking_inverts_packing(arrays: list[tuple[int, int]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    codes = [(draw.integers(0, 2**bits, count, dtype=np.uint8), bits) for bits, count in arrays]
    string, first = pack(codes), 0
    assert len(string) == math.ceil(sum(bits * count for bits, count in arrays) / 8)
    for array, bits in codes:
        np.testing.assert_array_equal(unpack(string, bits, first, len(array)), array)
        first += bits * len(array)


@given(st.floats(1e-9, 1e9), st.integers(20, 31), st.booleans())
def test_scales_are_rounded_to_the_nearest(value: float, bits: int, negative: bool) -> None:
    value = -value if negative else value
    number, shift = fixed_point(value, bits)
    error = abs(Fraction(value) - Fraction(number) / Fraction(2) ** shift)
    assert abs(number) < 2**bits
    assert error <= Fraction(1, 2) / Fraction(2) ** shift
    assert shift == 61 or abs(number) >= 2 ** (bits - 1) - 1


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20), st.integers(1, 8), st.floats(0.01, 200))
def test_quantization_is_that_of_exact_arithmetic_but_near_ties(values: list[float], bits: int, clip: float) -> None:
    operation = Quantize(name="q", inputs=("x",), shape=(1,), layer="l", bits=bits, clip=clip, offset=-clip / 4)
    graph = Graph(
        model="m",
        dataset="d",
        image_shape=(1, 1, 1),
        mean=np.zeros(1),
        std=np.ones(1),
        operations=(),
        output="x",
    )
    step = {**program.stated(operation), **packed._Writer(graph).quantize(operation, [])[0]}
    fixed = np.rint(np.array(values) * UNIT).astype(np.int64)
    codes = PackedNetwork.__new__(PackedNetwork)._quantize(step, fixed)
    size, offset = Fraction(clip) / operation.levels, Fraction(step["offset"], int(UNIT))
    for x, code in zip(fixed.tolist(), codes.tolist(), strict=True):
        position = min(max((Fraction(x, int(UNIT)) - offset) / size, 0), operation.levels) - Fraction(1, 2)
        assert code == max(0, math.ceil(position)) or abs(position - round(position)) < 1e-6


def test_half_way_between_two_codes_the_lower_one_is_taken() -> None:
    """A step of 2: values 1, 3, 5 lie half-way, and the paper's ⌈t − 1/2⌉ rounds them to 0, 1, 2."""
    step = {"offset": 0, "top": (30 << 24) + 1, "multiplier": 1 << 30, "shift": 24 + 31, "largest_code": 15}
    network = PackedNetwork.__new__(PackedNetwork)
    values = np.array([0, 1, 2, 3, 5, 29, 30, 31, -4], dtype=np.int64) << 24
    assert network._quantize(step, values).tolist() == [0, 0, 1, 1, 2, 14, 15, 15, 0]


# --- mutations: what must not pass ---------------------------------------------------------------------------------


def differing(sample: Sample, content: bytes) -> int:
    """Number of codes that differ from those of exact arithmetic."""
    _, seen = ran(content, sample.images)
    _, codes = sample.exact()
    return sum(int((seen[name] != values).sum()) for name, values in codes.items())


@pytest.fixture(scope="module")
def small() -> Sample:
    return sample("resnet8", seed=4)


def test_a_dropped_padding_map_is_noticed(small: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    def inner_everywhere(self: PackedNetwork, step: Any) -> Any:
        classes = step["border_classes"]
        values = self.numbers("biases", step["first_bias"], (step["weight_shape"][0], *classes))
        return values[:, 1:2, 1:2] if classes[0] > 1 else values

    assert differing(small, packed_network(small.graph)) == 0
    monkeypatch.setattr(PackedNetwork, "_border", inner_everywhere)
    assert differing(small, packed_network(small.graph)) > 0


def test_a_bias_in_units_of_the_accumulator_is_noticed(small: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(layer: Layer) -> Any:
        border = border_map(layer)
        unit = np.abs(layer.factor * layer.weight_step * layer.input_steps.max())[:, None, None]
        unit = np.where(unit == 0, 1, unit)
        return BorderMap(values=np.rint(border.values / unit) * unit, rows=border.rows, columns=border.columns)

    monkeypatch.setattr(Layer, "border", property(coarse))
    assert differing(small, packed_network(small.graph)) > 0


def test_rounding_half_up_is_noticed() -> None:
    """Steps that are powers of two make ties: a stem of ones adds up whole pixels."""
    tied = ties()
    assert differing(tied, packed_network(tied.graph)) == 0

    def half_up(_: PackedNetwork, step: Any, x: Any) -> Any:
        inside = np.clip(x - step["offset"], 0, step["top"]) * step["multiplier"]
        return np.minimum((inside + (1 << (step["shift"] - 1))) >> step["shift"], step["largest_code"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedNetwork, "_quantize", half_up)
        assert differing(tied, packed_network(tied.graph)) > 0


class Tied(nn.Module):
    """A stem whose output is a whole number, and a classifier that reads it in steps of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1, bias=False)
        self.fc = nn.Linear(1, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.fc(torch.relu(self.stem(x)).flatten(1))  # type: ignore[no-any-return]


def ties() -> Sample:
    """A network in which every odd pixel lies half-way between two codes."""
    made = sample(Tied(), (1, 1, 1), images=64)
    made.data.pixel_mean[:], made.data.pixel_std[:] = 0, 1
    with torch.no_grad():
        made.network.stem.weight.fill_(1)  # type: ignore[union-attr,operator]
        made.network.stem.weight_quantizer.clip.fill_(1)  # type: ignore[union-attr,operator]
        made.network.fc.activation_quantizer.clip.fill_(2 * 255)  # type: ignore[union-attr,operator]
    made.graph = read_graph(made.network, made.data, model="tied", dataset="pixels")
    return made


# --- what is written, and what is refused --------------------------------------------------------------------------


def test_the_written_file_runs_without_the_harness(small: Sample, tmp_path: Path) -> None:
    for name, content in packed_files(small.graph).items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "images.npy", small.images.numpy())
    script = (
        "import sys, runpy; sys.argv = ['executor.py', 'network.safetensors', 'images.npy', 'logits.npy'];"
        "runpy.run_path('executor.py', run_name='__main__');"
        "assert not {name.partition('.')[0] for name in sys.modules} & {'bench', 'torch'}"
    )
    printed = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    logits, _ = ran(packed_network(small.graph), small.images)
    assert printed.split() == [str(label) for label in logits.argmax(1)]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits)


def test_the_executor_imports_numpy_alone() -> None:
    source = Path(executor.__file__).read_text()
    imported = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))
    }
    assert imported <= {"numpy"} | set(sys.stdlib_module_names)


def test_the_program_is_json_that_names_every_operation(small: Sample) -> None:
    program = PackedNetwork(packed_network(small.graph)).program
    assert (program["version"], program["image_shape"]) == (2, [3, 16, 16])
    assert {step["operation"] for step in program["operations"]} == {"layer", "quantize", "clip", "add", "mean"}
    assert [step["name"] for step in program["operations"]] == [made.name for made in small.graph.operations]


def test_scales_and_program_add_less_than_a_quarter_to_the_weights() -> None:
    content = packed_network(sample("resnet20", (3, 8, 8), bits=(4,), prune=False, images=1).graph)
    assert len(content) < 1.25 * parts(content)["weights"]


def changed(change: Callable[[nn.Module], None]) -> Sample:
    """A network with a part that cannot be exported."""
    made = sample(Shifting(), (3, 13, 11))
    change(made.network)
    return made


def own_quantizer(network: nn.Module) -> None:
    from methods.shared.quantizers.pact import PactActivation

    network.same.activation_quantizer = PactActivation(4)  # type: ignore[union-attr]


def sixteen_bits(network: nn.Module) -> None:
    network.same.weight_quantizer.bits = 16  # type: ignore[union-attr,assignment]


def circular(network: nn.Module) -> None:
    layer = network.same
    assert isinstance(layer, QuantizedLayer)
    layer.geometry = type(layer.geometry)((1, 1), 1, (1, 1), 1, "circular", (1, 1, 1, 1))  # type: ignore[call-arg,arg-type]


def sigmoid(network: nn.Module) -> None:
    network.pool = nn.Sigmoid()


def full_precision(network: nn.Module) -> None:
    network.grouped = nn.Conv2d(8, 4, 1)


def own_statistics(network: nn.Module) -> None:
    network.norm = nn.BatchNorm2d(6, track_running_stats=False).eval()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_quantizer, "the input of layer 'same' has a PactActivation; only networks with the common quantizer"),
        (sixteen_bits, "the weight of layer 'same' has 16 bits; at most 8 are exported"),
        (circular, "layer 'same' pads with 'circular'; only zeros are handled"),
        (sigmoid, "'pool' is the operation 'sigmoid', which is not handled"),
        (full_precision, "'grouped' is a convolution with full precision; only quantized layers are exported"),
        (own_statistics, "'norm' is a normalisation that does not follow a convolution alone"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(change: Callable[[nn.Module], None], reason: str) -> None:
    made = changed(change)
    with pytest.raises(BenchError) as caught:
        read_graph(made.network, made.data, model="sample", dataset="pixels")
    assert reason in str(caught.value)
    assert "nothing was written" in str(caught.value)


def test_numbers_that_could_overflow_are_refused(small: Sample) -> None:
    network = copy.deepcopy(small.network)
    with torch.no_grad():
        network.bn1.bias.fill_(1e13)  # type: ignore[union-attr,operator]
    graph = read_graph(network, small.data, model="sample", dataset="pixels")
    with pytest.raises(BenchError, match="numbers in 'bn1' could have more than 62 bits"):
        packed_network(graph)
