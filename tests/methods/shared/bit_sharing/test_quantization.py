import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from bench.compression import kernels
from bench.compression.kernels import Kind
from bench.compression.kernels import mean_errors as fast_mean_errors
from bench.compression.quantizer import discretize, normalize, quantize
from methods.shared.bit_sharing.quantization import (
    bit_sharing,
    bit_sharing_literal,
    check_chain,
    decompose,
    metrics_literal,
)
from tests.methods.shared.bit_sharing.cases import (
    CASES,
    CHAINS,
    KINDS,
    SHAPE,
    TOLERANCE,
    Case,
    Outcome,
    away_from_ties,
    draws,
    make_case,
    mean_errors,
    relaxed_value,
    run,
)

VARIANTS = [
    pytest.param(
        masked, last, dtype, id=f"{'masked' if masked else 'all'}-{'nhwc' if last else 'nchw'}-{str(dtype)[-2:]}"
    )
    for masked, last, dtype in product((False, True), (False, True), (torch.float64, torch.float32))
]


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
        ((), "positive numbers"),
        ((0, 2), "positive numbers"),
        ((-2, 4), "positive numbers"),
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
    assert x.numel() > 2 * kernels._BLOCK_PER_THREAD * torch.get_num_threads()
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
