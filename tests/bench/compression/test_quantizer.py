import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.compression.quantizer import (
    Kind,
    Shifted,
    UniformQuantizer,
    best_clip,
    clamped,
    clip_parameters,
    clips_of,
    denormalize,
    discretize,
    drawn_sample,
    normalize,
    positive,
    quantize,
    quantize_literal,
    read_clips,
    restore_clips,
    standardize,
    steps,
)

KINDS: tuple[Kind, ...] = ("weight", "activation")
WIDTHS = (1, 2, 3, 4, 6, 8, 12)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def unclipped(x: Tensor, clip: float, kind: Kind) -> Tensor:
    """Mask of the elements in the clip range, bounds included."""
    return (x >= (0 if kind == "activation" else -clip)) & (x <= clip)


def exact_quantize(x: float, clip: Fraction, bits: int, kind: Kind) -> Fraction:
    """Eqs. 1–4 in exact arithmetic."""
    low = Fraction(0) if kind == "activation" else Fraction(-1)
    ratio = min(max(Fraction(x) / clip, low), Fraction(1))
    z = ratio if kind == "activation" else (ratio + 1) / 2
    step = Fraction(1, 2**bits - 1)
    level = step * math.ceil(z / step - Fraction(1, 2))
    return clip * level if kind == "activation" else clip * (2 * level - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_quantize_is_the_papers_in_exact_arithmetic(kind: Kind, bits: int) -> None:
    clip = Fraction(5, 4)
    x = 1.5 * normal(300, seed=bits)
    found = quantize(x, scalar(float(clip)), bits, kind).tolist()
    for value, result in zip(x.tolist(), found, strict=True):
        assert result == pytest.approx(float(exact_quantize(value, clip, bits, kind)), abs=1e-12)


@pytest.mark.parametrize("bits", WIDTHS)
def test_steps_is_one_less_than_the_levels(bits: int) -> None:
    z = torch.linspace(0, 1, 4 * 2**bits + 1, dtype=torch.float64)
    assert len(set(discretize(z, bits).tolist())) == steps(bits) + 1 == 2**bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_discretize_leaves_levels_alone_and_stays_in_bounds(bits: int) -> None:
    levels = torch.arange(2**bits, dtype=torch.float64) / steps(bits)
    assert torch.equal(discretize(levels, bits), levels)
    assert discretize(torch.tensor([0.0, 1.0]), bits).tolist() == [0.0, 1.0]
    z = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((discretize(z, bits) - z).abs().max()) <= 0.5 / steps(bits) + 1e-15


@pytest.mark.parametrize(("x", "rounded"), [(0.5, 0), (1.5, 1), (2.5, 2), (-0.5, -1), (-1.5, -2), (0.6, 1), (-0.4, 0)])
def test_ties_are_rounded_down(x: float, rounded: int) -> None:
    """One bit has the step 1: D is the rounding itself."""
    assert float(discretize(scalar(x), 1)) == rounded


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_middle_is_rounded_down(bits: int) -> None:
    assert float(discretize(scalar(0.5), bits)) == (2 ** (bits - 1) - 1) / steps(bits)


@pytest.mark.parametrize("kind", KINDS)
def test_normalize_and_denormalize_are_inverse_inside_the_range(kind: Kind) -> None:
    x, clip = normal(500), scalar(0.8)
    z = normalize(x, clip, kind)
    assert 0 <= float(z.min()) <= float(z.max()) <= 1
    kept = unclipped(x, 0.8, kind)
    assert torch.allclose(denormalize(z, clip, kind)[kept], x[kept], atol=1e-15)
    assert set(denormalize(z, clip, kind)[~kept].tolist()) == ({0.8, -0.8} if kind == "weight" else {0.8, 0.0})


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_have_symmetric_levels_without_zero(bits: int) -> None:
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    levels = torch.tensor(sorted(set(quantize(x, scalar(1.5), bits, "weight").tolist())), dtype=torch.float64)
    assert len(levels) == 2**bits
    assert torch.allclose(levels, -levels.flip(0), atol=1e-15)
    assert float(levels.abs().min()) > 0
    assert float(levels.max()) == 1.5


def straight_through(x: Tensor, clip: Tensor, bits: int, kind: Kind) -> Tensor:
    """The quantizer composed literally, D the identity in the backward pass; differentiated by autograd."""
    count = 2**bits - 1
    z = clamped(x / clip, 0, 1) if kind == "activation" else (clamped(x / clip, -1, 1) + 1) / 2
    z = z + (torch.ceil(z * count - 0.5) / count - z).detach()
    result: Tensor = clip * z if kind == "activation" else clip * (2 * z - 1)
    return result


# --- bounds ---


@pytest.mark.parametrize(
    ("low", "high", "derivatives"),
    [
        (0.0, 1.0, [0.0, 1.0, 1.0, 1.0, 0.0]),
        (0.0, None, [0.0, 1.0, 1.0, 1.0, 1.0]),
        (None, 1.0, [1.0, 1.0, 1.0, 1.0, 0.0]),
        (None, None, [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("bound", [float, scalar])
def test_the_derivative_on_a_bound_is_one(
    low: float | None, high: float | None, derivatives: list[float], bound: Callable[[float], float | Tensor]
) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    clipped = clamped(x, *(None if limit is None else bound(limit) for limit in (low, high)))
    assert torch.autograd.grad(clipped.sum(), x)[0].tolist() == derivatives
    smallest, largest = -math.inf if low is None else low, math.inf if high is None else high
    assert clipped.tolist() == [min(max(value, smallest), largest) for value in x.tolist()]


def test_bounds_get_the_gradient_of_what_lies_beyond_them() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0], requires_grad=True)
    low, high = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
    outer = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    to_x, to_low, to_high = torch.autograd.grad(clamped(x, low, high), (x, low, high), outer)
    assert to_x.tolist() == [0.0, 10.0, 100.0, 1e3, 0.0, 0.0]
    assert (float(to_low), float(to_high)) == (1.0, 1.1e5)


def test_what_is_no_number_stays_none_when_clipped() -> None:
    assert clamped(torch.tensor(math.nan), 0, 1).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_the_literal_form_passes_gradients_on_the_bounds_of_its_range(kind: Kind) -> None:
    x = torch.tensor([-2.5, -2.0, 0.0, 1.0, 2.0, 2.5], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(quantize_literal(x, scalar(2.0), 2, kind).sum(), x)[0].tolist()
    assert found == ([0.0, 1.0, 1.0, 1.0, 1.0, 0.0] if kind == "weight" else [0.0, 0.0, 1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(("value", "derivative"), [(1e-6, 1.0), (-1e-6, -1.0), (1e-7, 0.0), (0.0, 0.0), (0.5, 1.0)])
def test_a_clip_value_on_its_lower_bound_still_learns(value: float, derivative: float) -> None:
    clip = scalar(value).requires_grad_()
    assert float(torch.autograd.grad(positive(clip), clip)[0]) == derivative


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("clip", [0.3, 1.0, 2.7])
def test_gradients_are_those_of_the_literal_composition(kind: Kind, bits: int, clip: float) -> None:
    # The ends of the range and zero belong to the range.
    x = torch.cat([normal(200, seed=bits), torch.tensor([clip, -clip, 0.0])]).requires_grad_()
    clips = scalar(clip).requires_grad_()
    outer = normal(203, seed=99)
    expected = torch.autograd.grad(straight_through(x, clips, bits, kind), (x, clips), outer)
    found = torch.autograd.grad(quantize(x, clips, bits, kind), (x, clips), outer)
    assert torch.equal(found[0], outer * unclipped(x.detach(), clip, kind))
    assert torch.allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(found[1], expected[1], rtol=1e-12, atol=1e-12)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout_of_x", [torch.clone, channels_last, lambda x: x.transpose(2, 3), lambda x: x[1:]])
@pytest.mark.parametrize("layout_of_grad", [torch.clone, channels_last, lambda x: x.transpose(2, 3)])
def test_gradients_do_not_depend_on_the_layout_in_memory(
    kind: Kind, layout_of_x: Callable[[Tensor], Tensor], layout_of_grad: Callable[[Tensor], Tensor]
) -> None:
    x = layout_of_x(normal(3, 4, 5, 5)).requires_grad_()
    outer = layout_of_grad(normal(*x.shape, seed=1))
    clip = scalar(0.9).requires_grad_()
    expected = torch.autograd.grad(straight_through(x, clip, 3, kind), (x, clip), outer)
    found = torch.autograd.grad(quantize(x, clip, 3, kind), (x, clip), outer)
    assert torch.allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(found[1], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "x", "for_x", "for_clip"),
    [
        ("activation", 0.3, 1.0, 1 / 3 - 0.3),  # the level less z
        ("activation", 2.0, 0.0, 1.0),  # clipped: the level alone
        ("activation", -1.0, 0.0, 0.0),
        ("weight", 0.3, 1.0, 1 / 3 - 0.3),
        ("weight", 2.0, 0.0, 1.0),
        ("weight", -2.0, 0.0, -1.0),
    ],
)
def test_both_terms_of_the_clip_gradient_by_hand(kind: Kind, x: float, for_x: float, for_clip: float) -> None:
    value, clip = scalar(x).requires_grad_(), scalar(1.0).requires_grad_()
    found = torch.autograd.grad(quantize(value, clip, 2, kind), (value, clip))
    assert [float(gradient) for gradient in found] == pytest.approx([for_x, for_clip])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -0.7, 1e-30, -1e-30])
def test_odd_clip_values_give_finite_results(kind: Kind, value: float) -> None:
    module = UniformQuantizer(bits=4, kind=kind).double()
    with torch.no_grad():
        module.clip.fill_(value)
    x = normal(100).requires_grad_()
    result = module(x)
    gradients = torch.autograd.grad(result.square().sum(), (x, module.clip))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (result, *gradients))
    assert float(positive(module.clip.detach())) > 0


def test_negative_clip_value_acts_as_its_size_with_the_gradient_turned() -> None:
    x, outer = normal(100), normal(100, seed=1)
    results, gradients = [], []
    for value in (0.7, -0.7):
        clip = scalar(value).requires_grad_()
        results.append(quantize(x, positive(clip), 4, "weight"))
        gradients.append(float(torch.autograd.grad(results[-1], clip, outer)[0]))
    assert torch.equal(results[0], results[1])
    assert gradients[0] == -gradients[1] != 0


def error(x: Tensor, clip: float, bits: int, kind: Kind) -> float:
    return float((quantize(x, torch.tensor(clip, dtype=x.dtype), bits, kind) - x).square().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_best_clip_is_as_good_as_a_finer_brute_force(kind: Kind, bits: int) -> None:
    x = normal(2000, seed=bits)
    x = x.relu() if kind == "activation" else x
    largest = float(x.abs().max())
    scan = min(error(x, largest * step / 2000, bits, kind) for step in range(1, 2001))
    assert error(x, best_clip(x, bits, kind), bits, kind) <= 1.02 * scan


def test_best_clip_cuts_outliers_at_few_bits_and_keeps_them_at_many() -> None:
    x = torch.cat([normal(5000), scalar(8.0).reshape(1)])
    assert best_clip(x, 2, "weight") < best_clip(x, 4, "weight") < best_clip(x, 8, "weight") <= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [7, 5000, 100_000])
def test_best_clip_is_that_of_the_equations_one_by_one(kind: Kind, count: int) -> None:
    """Candidates are tried many at once, in place; nothing may round otherwise."""
    x = 3 * normal(count, seed=count, dtype=torch.float32)
    sample, largest = drawn_sample(x), float(drawn_sample(x).abs().max())
    candidates = [largest * step / 80 for step in range(1, 81)]
    errors = [error(sample, candidate, 3, kind) for candidate in candidates]
    assert best_clip(x, 3, kind) == candidates[errors.index(min(errors))]


@pytest.mark.parametrize("kind", KINDS)
def test_best_clip_of_zeros_is_one(kind: Kind) -> None:
    assert best_clip(torch.zeros(10), 4, kind) == 1.0


def test_best_clip_of_large_maps_sees_all_columns() -> None:
    """The values of a border column differ from the rest; evenly spaced elements would all be from that column."""
    x = normal(128, 16, 32, 32, dtype=torch.float32).abs()
    x[..., 0] *= 0.01
    sampled, full = best_clip(x, 4, "activation"), best_clip(x[:4], 4, "activation")
    assert sampled == pytest.approx(full, rel=0.1)
    assert sampled == best_clip(x, 4, "activation")


@pytest.mark.parametrize("kind", KINDS)
def test_calibrate_sets_the_best_clip(kind: Kind) -> None:
    module, x = UniformQuantizer(bits=4, kind=kind).double(), 3 * normal(1000).abs()
    module.calibrate(x)
    assert float(module.clip.detach()) == best_clip(x, 4, kind)


def test_calibrate_looks_at_standardised_weights() -> None:
    weight = 0.01 * normal(20, 10, 3, 3) + 0.5
    module = UniformQuantizer(bits=4, kind="weight", normalized=True).double()
    module.calibrate(weight)
    assert float(module.clip.detach()) == best_clip(standardize(weight), 4, "weight")
    assert torch.equal(module(weight), quantize(standardize(weight), module.clip, 4, "weight"))


def test_full_precision_passes_through_and_needs_no_clip() -> None:
    module, x = UniformQuantizer(bits=32, kind="weight", normalized=True), normal(10)
    module.calibrate(x)
    assert module(x) is x
    assert float(module.clip.detach()) == 1.0


def test_standardize_gives_mean_zero_and_deviation_one() -> None:
    standard = standardize(3 * normal(20, 10, 3, 3) + 2)
    assert float(standard.mean()) == pytest.approx(0, abs=1e-12)
    assert float(standard.std()) == pytest.approx(1)


def test_standardize_with_a_mask_is_that_of_the_sliced_tensor() -> None:
    weight = normal(8, 6, 3, 3) + 0.3
    kept_out, kept_in = torch.tensor([0, 2, 3, 7]), torch.tensor([1, 4])
    mask = torch.zeros(8, 6, 1, 1, dtype=torch.float64)
    mask[kept_out.unsqueeze(1), kept_in] = 1
    sliced = weight[kept_out][:, kept_in]
    assert torch.allclose(standardize(weight, mask)[kept_out][:, kept_in], standardize(sliced), atol=1e-12)
    assert torch.allclose(standardize(weight, torch.ones(1)), standardize(weight), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_standardize_has_no_gradient_through_its_statistics(masked: bool) -> None:
    weight = normal(4, 5).requires_grad_()
    outer = normal(4, 5, seed=1)
    mask = torch.ones(4, 1, dtype=torch.float64) if masked else None
    (gradient,) = torch.autograd.grad(standardize(weight, mask), weight, outer)
    assert torch.allclose(gradient, outer / weight.detach().std())


def test_standardize_of_equal_weights_is_finite() -> None:
    assert torch.equal(standardize(torch.full((3, 3), 0.5)), torch.zeros(3, 3))
    assert bool(torch.isfinite(standardize(torch.full((3, 3), 0.7))).all())


def test_clip_parameters_are_the_quantizers_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2), UniformQuantizer(bits=4, kind="weight"))
    assert list(map(id, clip_parameters(model))) == [id(model[1].clip)]


# --- inputs that can be negative ---


def shifted(bits: int, clip: float, offset: float) -> Shifted:
    quantizer = Shifted(UniformQuantizer(bits=bits, kind="activation")).double()
    with torch.no_grad():
        quantizer.quantizer.clip.fill_(clip)  # type: ignore[operator]
        quantizer.offset.fill_(offset)
    return quantizer


def shifted_literal(x: Tensor, clip: Tensor, offset: Tensor, bits: int) -> Tensor:
    """v · D(clip((x − β)/v, 0, 1)) + β, D the identity in the backward pass."""
    z = clamped((x - offset) / clip, 0, 1)
    count = 2**bits - 1
    level = torch.ceil(z.detach() * count - 0.5) / count
    result: Tensor = clip * (z + (level - z).detach()) + offset
    return result


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("clip", "offset"), [(1.5, -0.4), (0.7, 0.3), (2.0, 0.0)])
def test_shifted_quantizer_is_the_literal_one(bits: int, clip: float, offset: float) -> None:
    x = normal(40, 7, seed=bits).requires_grad_()
    quantizer = shifted(bits, clip, offset)
    leaves = [scalar(clip).requires_grad_(), scalar(offset).requires_grad_()]
    found, expected = quantizer(x), shifted_literal(x, leaves[0], leaves[1], bits)
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = normal(40, 7, seed=99)
    assert isinstance(quantizer.quantizer, UniformQuantizer)
    inner = quantizer.quantizer.clip
    one = torch.autograd.grad((found * upstream).sum(), [x, inner, quantizer.offset])
    other = torch.autograd.grad((expected * upstream).sum(), [x, *leaves])
    for a, b in zip(one, other, strict=True):
        assert bool(b.any())
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("bits", [2, 8])
def test_offset_feels_what_lies_outside_its_range(bits: int) -> None:
    """LSQ+, Eq. 6: dQ/dβ is 1 where x is clipped, on either side, and 0 elsewhere."""
    quantizer = shifted(bits, clip=1.0, offset=-0.25)
    for value, slope in ((-0.3, 1.0), (-10.0, 1.0), (-0.2, 0.0), (0.0, 0.0), (0.7, 0.0), (0.8, 1.0), (5.0, 1.0)):
        x = scalar(value).requires_grad_()
        to_x, to_offset = torch.autograd.grad(quantizer(x), [x, quantizer.offset])
        assert (float(to_x), float(to_offset)) == (1 - slope, slope), value


SIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "hard swish": nn.functional.hardswish,
    "normal": lambda x: x,
    "mostly positive": lambda x: x + 1.5,
    "far below zero": lambda x: 0.2 * x - 3,
    "one outlier": lambda x: torch.cat([nn.functional.hardswish(x).flatten(), scalar(-9.0).view(1)]),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("case", SIGNED)
def test_calibration_is_no_worse_than_without_an_offset_and_than_from_the_minimum(case: str, bits: int) -> None:
    x = SIGNED[case](normal(500, seed=1))

    def error(quantizer: Shifted) -> float:
        with torch.no_grad():
            return float((quantizer(x) - x).square().mean())

    calibrated = shifted(bits, 1.0, 0.3)
    calibrated.calibrate(x)
    others = [shifted(bits, best_clip(x - low, bits, "activation"), low) for low in (0.0, float(x.min()))]
    errors = [error(other) for other in others]
    assert error(calibrated) <= min(errors) * (1 + 1e-9)
    assert float(x.min()) <= float(calibrated.offset.detach()) <= 0
    if case != "one outlier":
        assert error(calibrated) < 0.9 * max(errors)


def test_calibration_of_what_is_not_negative_needs_no_offset() -> None:
    x = normal(400, seed=2).abs() + 0.1
    quantizer, plain = shifted(4, 1.0, -0.5), UniformQuantizer(bits=4, kind="activation").double()
    quantizer.calibrate(x)
    plain.calibrate(x)
    assert float(quantizer.offset.detach()) == 0
    assert torch.equal(quantizer(x), plain(x))


def test_parameters_of_a_layers_quantizers_have_names() -> None:
    weight = UniformQuantizer(bits=4, kind="weight")
    signed = Shifted(UniformQuantizer(bits=4, kind="activation"))
    plain = UniformQuantizer(bits=4, kind="activation")
    assert [key for key, _ in clips_of("a", weight, plain)] == ["a.weight", "a.activation"]
    assert [key for key, _ in clips_of("a", weight, nn.Identity())] == ["a.weight"]
    found = dict(clips_of("a", weight, signed))
    assert found.keys() == {"a.weight", "a.activation", "a.offset"}
    restore_clips(clips_of("a", weight, signed), {"a.activation": 0.5, "a.offset": -0.125, "b.offset": 7.0})
    values = read_clips(found.items())
    assert values == {"a.weight": 1.0, "a.activation": 0.5, "a.offset": -0.125}
    with torch.no_grad():
        found["a.weight"].fill_(-2.0)  # an optimizer may: it is used as a positive number
    assert read_clips(found.items())["a.weight"] == 2.0


def test_offsets_are_trained_like_clip_values() -> None:
    """Clip values have no weight decay: pulling a range towards zero does not regularise."""
    signed = Shifted(UniformQuantizer(bits=4, kind="activation"))
    network = nn.Sequential(nn.Linear(2, 2), signed)
    assert {id(parameter) for parameter in clip_parameters(network)} == {id(p) for p in signed.parameters()}
    assert len(list(signed.parameters())) == 2
