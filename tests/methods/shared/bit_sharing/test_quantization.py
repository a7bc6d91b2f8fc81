import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.compression import kernels
from bench.compression.kernels import Kind
from bench.compression.kernels import mean_errors as fast_mean_errors
from bench.compression.quantizer import discretize, normalize, quantize, quantize_literal
from methods.shared.bit_sharing.quantization import (
    bit_sharing,
    bit_sharing_literal,
    check_chain,
    decompose,
    metrics_literal,
)

KINDS: tuple[Kind, ...] = ("weight", "activation")
CHAINS = [(4,), (2, 4), (2, 4, 8), (3, 6, 12)]
SHAPE = (4, 3, 3, 4)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tie_distance(z: float, bits: Sequence[int]) -> float:
    """How far a value is from the nearest middle between two levels of any width, in steps."""
    scaled = [z * (2**width - 1) - 0.5 for width in bits]
    return min(abs(value - round(value)) for value in scaled)


@cache
def away_from_ties(shape: tuple[int, ...], clip: float, kind: Kind, bits: tuple[int, ...], seed: int = 0) -> Tensor:
    """Values inside and outside the clip range, none of which rounds differently in another precision."""
    found: list[float] = []
    for x in torch.randn(3 * math.prod(shape), generator=draws(seed), dtype=torch.float64).tolist():
        ratio = min(max(x / clip, 0 if kind == "activation" else -1), 1)
        z = ratio if kind == "activation" else (ratio + 1) / 2
        if tie_distance(z, bits) > 2e-3 and abs(abs(x) - clip) > 1e-3:
            found.append(x)
    return torch.tensor(found[: math.prod(shape)], dtype=torch.float64).view(shape)


# --- the mathematics, one element at a time ---


def level(z: float, width: int) -> float:
    """D(z, s)."""
    count = 2**width - 1
    return math.ceil(z * count - 0.5) / count


def position(x: float, clip: float, kind: Kind) -> float:
    """Eqs. 1 and 2."""
    if kind == "activation":
        return min(max(x / clip, 0.0), 1.0)
    return (min(max(x / clip, -1.0), 1.0) + 1) / 2


def relaxed_value(x: float, clip: float, gates: Sequence[float], bits: Sequence[int], kind: Kind) -> float:
    """Eq. 10 with gates of any value."""
    z = position(x, clip, kind)
    total, product_of_gates = level(z, bits[0]), 1.0
    for (low, high), opened in zip(pairwise(bits), gates, strict=True):
        product_of_gates *= opened
        total += product_of_gates * level(z - level(z, low), high)
    return clip * total if kind == "activation" else clip * (2 * total - 1)


class Case(NamedTuple):
    """Arguments of bit sharing, and the upstream gradients of its results."""

    x: Tensor
    clip: Tensor
    thresholds: Tensor
    mask: Tensor | None
    grad: Tensor
    grad_gates: Tensor


def make_case(
    kind: Kind, bits: tuple[int, ...], pattern: Sequence[int], *, masked: bool, channels_last: bool, dtype: torch.dtype
) -> Case:
    """Random arguments for which the gates are `pattern`."""
    clip = 1.25
    x = away_from_ties(SHAPE, clip, kind, bits).to(dtype)
    grad = torch.randn(SHAPE, generator=draws(7), dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last)
    mask = None
    if masked:
        mask = torch.tensor([1.0, 0.0, 1.0], dtype=dtype).view(1, -1, 1, 1)
        if kind == "weight":
            mask = mask * torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=dtype).view(-1, 1, 1, 1)
    measured = torch.tensor(mean_errors(x, clip, bits, kind, mask), dtype=dtype)
    offsets = torch.tensor([-0.01 if opened else 0.013 for opened in pattern], dtype=dtype)
    grad_gates = torch.randn(len(bits) - 1, generator=draws(8), dtype=torch.float64).to(dtype)
    return Case(x, torch.tensor(clip, dtype=dtype), measured + offsets, mask, grad, grad_gates)


def mean_errors(x: Tensor, clip: float, bits: Sequence[int], kind: Kind, mask: Tensor | None) -> list[float]:
    """Â of each gate, by a loop."""
    counted = torch.ones_like(x) if mask is None else mask.expand_as(x)
    inside = [
        position(v, clip, kind) for v, m in zip(x.flatten().tolist(), counted.flatten().tolist(), strict=True) if m
    ]
    return [sum(abs(z - level(z, low)) for z in inside) / len(inside) for low in bits[:-1]]


CASES = [
    (kind, bits, pattern) for kind in KINDS for bits in CHAINS for pattern in product((0, 1), repeat=len(bits) - 1)
]
VARIANTS = [
    pytest.param(
        masked, last, dtype, id=f"{'masked' if masked else 'all'}-{'nhwc' if last else 'nchw'}-{str(dtype)[-2:]}"
    )
    for masked, last, dtype in product((False, True), (False, True), (torch.float64, torch.float32))
]


class Outcome(NamedTuple):
    """Results and gradients of one form."""

    value: Tensor
    gates: Tensor
    to_x: Tensor
    to_clip: Tensor
    to_thresholds: Tensor


def run(
    case: Case,
    bits: Sequence[int],
    kind: Kind,
    *,
    literal: bool,
    task_gradient: bool = True,
    probed: Tensor | None = None,
) -> Outcome:
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in case[:3]]
    x, clip, thresholds = leaves
    if literal:
        value, gates = bit_sharing_literal(x, clip, thresholds, bits, kind, case.mask, probed=probed)
    else:
        value, gates, _ = bit_sharing(
            x, clip, thresholds, bits, kind, case.mask, None, probed, task_gradient=task_gradient
        )
    loss = (value * case.grad).sum() + (gates * case.grad_gates).sum()
    return Outcome(value.detach(), gates.detach(), *torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
@pytest.mark.parametrize(("masked", "channels_last", "dtype"), VARIANTS)
def test_fused_form_is_the_literal_one(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...], masked: bool, channels_last: bool, dtype: torch.dtype
) -> None:
    case = make_case(kind, bits, pattern, masked=masked, channels_last=channels_last, dtype=dtype)
    fused, literal = (run(case, bits, kind, literal=form) for form in (False, True))
    assert tuple(fused.gates.tolist()) == pattern
    for name, found, expected in zip(Outcome._fields, fused, literal, strict=True):
        assert found.dtype == expected.dtype == dtype
        assert torch.allclose(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10), name


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
@pytest.mark.parametrize("literal", [False, True])
def test_value_and_gradients_are_the_equations(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...], literal: bool
) -> None:
    """Against Eq. 10 element by element; dL/dg by differences of its relaxed value."""
    case = make_case(kind, bits, pattern, masked=False, channels_last=False, dtype=torch.float64)
    found = run(case, bits, kind, literal=literal)
    values, upstream, clip = case.x.flatten().tolist(), case.grad.flatten().tolist(), case.clip.item()
    expected = [relaxed_value(x, clip, pattern, bits, kind) for x in values]
    assert found.value.flatten().tolist() == pytest.approx(expected, abs=1e-12)

    low = 0 if kind == "activation" else -clip
    passed = [g if low <= x <= clip else 0 for x, g in zip(values, upstream, strict=True)]
    assert found.to_x.flatten().tolist() == pytest.approx(passed, abs=1e-12)
    from_levels = sum(g * y / clip for y, g in zip(expected, upstream, strict=True))
    from_inside = sum(g * x / clip for x, g in zip(values, upstream, strict=True) if low <= x <= clip)
    assert found.to_clip.item() == pytest.approx(from_levels - from_inside, abs=1e-10)

    excess = torch.tensor(mean_errors(case.x, clip, bits, kind, None), dtype=torch.float64) - case.thresholds
    slopes = torch.sigmoid(excess) * torch.sigmoid(-excess)
    for index in range(len(bits) - 1):
        task = difference(case, pattern, index, bits, kind)
        total = task + float(case.grad_gates[index])
        assert found.to_thresholds[index].item() == pytest.approx(-total * float(slopes[index]), abs=1e-10)


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
@pytest.mark.parametrize("per_width", [False, True])
def test_a_probed_gate_acts_as_a_shut_one(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...], per_width: bool
) -> None:
    """Value and task's gradients are those with the gate shut; the gate itself, its cost and slope are its own."""
    case = make_case(kind, bits, pattern, masked=False, channels_last=False, dtype=torch.float64)
    if per_width:
        case = case._replace(clip=case.clip * torch.linspace(0.8, 1.2, len(bits), dtype=torch.float64))
    for probed in product((0.0, 1.0), repeat=len(pattern)):
        found = run(case, bits, kind, literal=False, probed=torch.tensor(probed, dtype=torch.float64))
        shut = shut_as_well(case, probed)
        expected = run(shut, bits, kind, literal=False)
        assert found.gates.tolist() == list(pattern)
        for name in ("value", "to_x", "to_clip"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        slopes = [slope_at(some, bits, kind) for some in (case, shut)]
        assert torch.allclose(found.to_thresholds / slopes[0], expected.to_thresholds / slopes[1], atol=1e-10)


def shut_as_well(case: Case, probed: Sequence[float]) -> Case:
    """The same with thresholds of probed gates above any metric."""
    return case._replace(thresholds=case.thresholds + 2.0 * torch.tensor(probed, dtype=case.thresholds.dtype))


def slope_at(case: Case, bits: Sequence[int], kind: Kind) -> Tensor:
    """S(1 − S) of each gate, from its metric."""
    *_, measured = bit_sharing(case.x, case.clip, case.thresholds, bits, kind, case.mask)
    share = torch.sigmoid(measured - case.thresholds)
    return share * (1 - share)


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
def test_both_forms_probe_alike(kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...]) -> None:
    case = make_case(kind, bits, pattern, masked=True, channels_last=False, dtype=torch.float64)
    for probed in product((0.0, 1.0), repeat=len(pattern)):
        forms = [run(case, bits, kind, literal=form, probed=torch.tensor(probed).double()) for form in (False, True)]
        for name, found, expected in zip(Outcome._fields, *forms, strict=True):
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10), name


def difference(case: Case, pattern: Sequence[int], index: int, bits: Sequence[int], kind: Kind) -> float:
    """d⟨grad, value⟩/dg by a central difference; the value is linear in each gate."""

    def loss(opened: float) -> float:
        gates = [opened if at == index else float(other) for at, other in enumerate(pattern)]
        pairs = zip(case.x.flatten().tolist(), case.grad.flatten().tolist(), strict=True)
        return sum(g * relaxed_value(x, case.clip.item(), gates, bits, kind) for x, g in pairs)

    return loss(pattern[index] + 0.5) - loss(pattern[index] - 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", CHAINS)
@pytest.mark.parametrize("masked", [False, True])
def test_metric_is_the_mean_error_of_what_counts(kind: Kind, bits: tuple[int, ...], masked: bool) -> None:
    case = make_case(kind, bits, (1,) * (len(bits) - 1), masked=masked, channels_last=False, dtype=torch.float64)
    *_, measured = bit_sharing(case.x, case.clip.requires_grad_(), case.thresholds, bits, kind, case.mask)
    assert not measured.requires_grad
    assert measured.tolist() == pytest.approx(mean_errors(case.x, case.clip.item(), bits, kind, case.mask), abs=1e-14)


def test_elements_behind_the_mask_do_not_move_a_gate() -> None:
    x = torch.rand(2, 3, 4, generator=draws())
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1)
    other = torch.where(mask == 0, torch.rand(2, 3, 4, generator=draws(1)), x)

    def metrics(values: Tensor, counted: Tensor | None = None) -> Tensor:
        return fast_mean_errors(values, torch.ones(()), (2, 4), "activation", counted)

    assert not torch.equal(metrics(x), metrics(other))
    assert torch.allclose(metrics(x, mask), metrics(other, mask))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("literal", [False, True])
def test_a_gate_at_its_threshold_is_open_and_just_below_it_shut(kind: Kind, literal: bool) -> None:
    bits = (2, 4)
    x = torch.randn(300, generator=draws())
    clip = torch.tensor(1.5)
    measured = bit_sharing(x, clip, torch.zeros(1), bits, kind)[2]
    if literal:
        measured = metrics_literal(normalize(x, clip, kind), bits)
    for towards, opened in ((-math.inf, 1), (None, 1), (math.inf, 0)):
        at = measured if towards is None else torch.nextafter(measured, torch.tensor(towards))
        gates = (bit_sharing_literal if literal else bit_sharing)(x, clip, at, bits, kind)[1]
        assert gates.tolist() == [opened]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_the_plain_quantizers_to_the_last_bit(kind: Kind, dtype: torch.dtype) -> None:
    """Ties and their neighbours included, so that a searched network and its reduced form round alike."""
    bits = (2, 4, 8)
    middles = torch.cat([(torch.arange(2**width - 1) + 0.5) / (2**width - 1) for width in bits]).to(dtype)
    x = torch.cat([middles, *(torch.nextafter(middles, torch.tensor(end, dtype=dtype)) for end in (-1.0, 2.0))])
    x = x if kind == "activation" else 2 * x - 1
    clip = torch.tensor(1.0, dtype=dtype)
    for opened, width in enumerate(bits):
        thresholds = torch.full((2,), math.inf, dtype=dtype)
        thresholds[:opened] = -math.inf
        assert torch.equal(bit_sharing(x, clip, thresholds, bits, kind)[0], quantize(x, clip, width, kind))


@pytest.mark.parametrize("bits", CHAINS)
def test_offsets_add_up_to_each_width(bits: tuple[int, ...]) -> None:
    z = torch.rand(5000, generator=draws(), dtype=torch.float64)
    parts = decompose(z, bits)
    assert len(parts) == len(bits)
    for count, width in enumerate(bits, start=1):
        assert torch.allclose(sum(parts[:count], start=torch.zeros(())), discretize(z, width), atol=1e-12)


# --- who feels what ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("literal", [False, True])
def test_behind_a_shut_gate_the_next_one_feels_the_cost_alone(kind: Kind, literal: bool) -> None:
    bits = (2, 4, 8)
    case = make_case(kind, bits, (0, 1), masked=False, channels_last=False, dtype=torch.float64)
    task_only = case._replace(grad_gates=torch.zeros(2, dtype=torch.float64))
    first, second = run(task_only, bits, kind, literal=literal).to_thresholds.tolist()
    assert second == 0 != first
    cost_only = case._replace(grad=torch.zeros_like(case.grad))
    assert all(run(cost_only, bits, kind, literal=literal).to_thresholds.tolist())


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
def test_without_task_gradient_thresholds_lose_the_tasks_part_and_nothing_else_changes(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...]
) -> None:
    case = make_case(kind, bits, pattern, masked=True, channels_last=False, dtype=torch.float64)
    with_task = run(case, bits, kind, literal=False)
    without = run(case, bits, kind, literal=False, task_gradient=False)
    for name in ("value", "gates", "to_x", "to_clip"):
        assert torch.equal(getattr(with_task, name), getattr(without, name))
    of_cost = run(case._replace(grad=torch.zeros_like(case.grad)), bits, kind, literal=True).to_thresholds
    of_task = run(case._replace(grad_gates=torch.zeros_like(case.grad_gates)), bits, kind, literal=True).to_thresholds
    assert torch.allclose(without.to_thresholds, of_cost, atol=1e-12)
    assert torch.allclose(with_task.to_thresholds - without.to_thresholds, of_task, atol=1e-10)


# --- chains ---


@pytest.mark.parametrize("bits", [(2,), (2, 4, 8), (3, 6, 12), (1, 3, 9), (2, 6)])
def test_multiples_form_a_chain(bits: tuple[int, ...]) -> None:
    check_chain(bits)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ((), "positive widths"),
        ((0, 2), "positive widths"),
        ((-2, 4), "positive widths"),
        ((4, 2), "2 is not a multiple of 4"),
        ((2, 2), "2 is not a multiple of 2"),
        ((2, 5), "5 is not a multiple of 2"),
        ((2, 4, 6), "6 is not a multiple of 4"),
    ],
)
def test_other_widths_are_refused_by_name(bits: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_chain(bits)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_tensors_are_worked_on_in_single_precision(kind: Kind) -> None:
    bits = (2, 4, 8)
    x = away_from_ties(SHAPE, 1.25, kind, bits).to(torch.bfloat16)
    grad = torch.randn(SHAPE, generator=draws(7)).to(torch.bfloat16)

    def work(values: Tensor, upstream: Tensor) -> list[Tensor]:
        values = values.clone().requires_grad_()
        clip = torch.tensor(1.25, requires_grad=True)
        thresholds = torch.tensor([-1.0, 1.0], requires_grad=True)
        value, _, measured = bit_sharing(values, clip, thresholds, bits, kind)
        return [value, measured, *torch.autograd.grad(value, [values, clip, thresholds], upstream)]

    low, single = work(x, grad), work(x.float(), grad.float())
    assert [part.dtype for part in low] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    value, _, to_x, to_clip, _ = (part.float() for part in low)
    upstream = grad.float()
    # The clip value's gradient is that of the rounded values which the network works with.
    single[3] = ((upstream * value).sum() - (to_x * x.float()).sum()) / 1.25
    for found, expected in zip(low, single, strict=True):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-5)
    assert to_clip.item() == pytest.approx(work(x.float(), upstream)[3].item(), rel=2e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_large_tensors_are_gone_through_in_blocks(kind: Kind, channels_last: bool, masked: bool) -> None:
    """Every block is seen once, the last and smaller one too."""
    bits = (2, 4, 8)
    x = torch.rand(37, 16, 32, 32, generator=draws()).mul(2.5).sub(0.5)
    grad = torch.randn(x.shape, generator=draws(1))
    if channels_last:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    assert x.numel() > 2 * kernels._BLOCK_OF_A_THREAD * torch.get_num_threads()
    mask = torch.tensor([1.0, 0.0] * 8).view(1, -1, 1, 1) if masked else None
    outcomes = []
    for form in (bit_sharing, bit_sharing_literal):
        leaves = [x.clone(memory_format=torch.preserve_format), torch.tensor(1.25), torch.tensor([-1.0, 1.0])]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        value = form(*leaves, bits, kind, mask)[0]
        outcomes.append([value.detach(), *torch.autograd.grad(value, leaves, grad)])
    differing = ((outcomes[0][0] - outcomes[1][0]).abs() > 1e-5).float().mean()
    assert outcomes[0][0].stride() == x.stride() and differing < 1e-4  # some values lie on ties
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])
    for found, expected in zip(outcomes[0][2:], outcomes[1][2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_single_elements(kind: Kind) -> None:
    for shape in ((0, 3, 4, 4), (1,), *([()] if kind == "weight" else [])):
        x = torch.full(shape, 0.3, requires_grad=True)
        clip, thresholds = torch.tensor(1.0, requires_grad=True), torch.tensor([-1.0, 1.0], requires_grad=True)
        value = bit_sharing(x, clip, thresholds, (2, 4, 8), kind)[0]
        assert value.shape == x.shape
        value.sum().backward()
        assert x.grad is not None and bool((x.grad == 1).all())


# --- a clip value for each width ---


def by_width_case(kind: Kind, bits: tuple[int, ...], pattern: Sequence[int]) -> Case:
    """The arguments of a case with other clip values, for which the gates are `pattern`."""
    case = make_case(kind, bits, pattern, masked=False, channels_last=False, dtype=torch.float64)
    clips = torch.tensor([0.7 + 0.35 * index for index in range(len(bits))], dtype=torch.float64)
    measured = [mean_errors(case.x, clips[i].item(), bits[i : i + 2], kind, None)[0] for i in range(len(bits) - 1)]
    offsets = torch.tensor([-0.01 if opened else 0.013 for opened in pattern], dtype=torch.float64)
    return case._replace(clip=clips, thresholds=torch.tensor(measured, dtype=torch.float64) + offsets)


def by_width_loss(case: Case, gates: Sequence[float], bits: Sequence[int], kind: Kind) -> float:
    """⟨grad, Q_1 + g_2(Q_2 − Q_1 + g_3(…))⟩, element by element."""
    clips, total = case.clip.tolist(), 0.0
    for x, upstream in zip(case.x.flatten().tolist(), case.grad.flatten().tolist(), strict=True):
        levels = [level(position(x, clip, kind), width) for clip, width in zip(clips, bits, strict=True)]
        values = [
            clip * z if kind == "activation" else clip * (2 * z - 1) for clip, z in zip(clips, levels, strict=True)
        ]
        value, product_of_gates = values[0], 1.0
        for (low, high), opened in zip(pairwise(values), gates, strict=True):
            product_of_gates *= opened
            value += product_of_gates * (high - low)
        total += upstream * value
    return total


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
def test_with_a_clip_value_for_each_width_gates_feel_the_change_of_width(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...]
) -> None:
    case = by_width_case(kind, bits, pattern)
    found = run(case, bits, kind, literal=False)
    assert tuple(found.gates.tolist()) == pattern
    active = [*pattern, 0].index(0)
    clip = case.clip[active].clone().requires_grad_()
    x = case.x.clone().requires_grad_()
    expected = quantize_literal(x, clip, bits[active], kind)
    to_x, to_clip = torch.autograd.grad((expected * case.grad).sum(), [x, clip])
    assert torch.allclose(found.value, expected, atol=1e-12)
    assert torch.allclose(found.to_x, to_x)
    assert found.to_clip[active].item() == pytest.approx(to_clip.item())
    assert found.to_clip.count_nonzero() <= 1
    excess = torch.tensor([0.01 if opened else -0.013 for opened in pattern], dtype=torch.float64)
    slopes = torch.sigmoid(excess) * torch.sigmoid(-excess)
    for index in range(len(bits) - 1):
        ends = [[half if i == index else float(g) for i, g in enumerate(pattern)] for half in (1.0, 0.0)]
        task = by_width_loss(case, ends[0], bits, kind) - by_width_loss(case, ends[1], bits, kind)
        total = task + float(case.grad_gates[index])
        assert found.to_thresholds[index].item() == pytest.approx(-total * float(slopes[index]), abs=1e-10)


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_equal_clip_values_are_one(kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...], masked: bool) -> None:
    case = make_case(kind, bits, pattern, masked=masked, channels_last=True, dtype=torch.float64)
    one = run(case, bits, kind, literal=False)
    many = run(case._replace(clip=case.clip.repeat(len(bits))), bits, kind, literal=False)
    assert many.to_clip.sum().item() == pytest.approx(one.to_clip.item())
    for name in ("value", "gates", "to_x", "to_thresholds"):
        assert torch.allclose(getattr(many, name), getattr(one, name)), name


@pytest.mark.parametrize("by_width", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_compared_in_their_scale(kind: Kind, by_width: bool) -> None:
    case = make_case(kind, (2, 4, 8), (1, 1), masked=False, channels_last=False, dtype=torch.float64)
    clip = case.clip.repeat(3) if by_width else case.clip
    plain = bit_sharing(case.x, clip, case.thresholds, (2, 4, 8), kind)[2]
    scale = torch.tensor([0.5, 3.0], dtype=torch.float64)
    _, gates, measured = bit_sharing(case.x, clip, case.thresholds, (2, 4, 8), kind, None, scale)
    assert torch.allclose(measured, plain * scale)
    assert gates.tolist() == [0.0, 1.0]
    assert bit_sharing_literal(case.x, case.clip, case.thresholds, (2, 4, 8), kind, None, scale)[1].tolist() == [0, 1]
