"""Bit sharing beyond the paper: probes, scaled metrics, and a clip value for each width."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from bench.compression.compress import calibrate
from bench.compression.kernels import Kind
from bench.compression.quantizer import best_clip, quantize_literal, standardize
from bench.method import SearchJob
from methods.shared.bit_sharing.extended import ExtendedNetwork, ScaledQuantizer, SeparateClipsQuantizer
from methods.shared.bit_sharing.network import Start
from methods.shared.bit_sharing.options import SbsOptions, search_space
from methods.shared.bit_sharing.quantization import bit_sharing_literal, gated_literal
from methods.shared.bit_sharing.quantizer import SharedQuantizer
from tests.methods.shared.bit_sharing.cases import (
    CASES,
    KINDS,
    Case,
    Outcome,
    level,
    make_case,
    mean_errors,
    outcome,
    position,
    run,
)


def quantizer_of(case: Case, bits: tuple[int, ...], kind: Kind) -> ScaledQuantizer:
    """A quantizer with the parameters of a case."""
    form = SeparateClipsQuantizer if case.clip.ndim else ScaledQuantizer
    quantizer = form(bits, kind, case.x)
    with torch.no_grad():
        quantizer.clip.copy_(case.clip)
        quantizer.thresholds.copy_(case.thresholds)
    return quantizer


def extended(case: Case, bits: tuple[int, ...], kind: Kind, probed: Tensor | None = None) -> Outcome:
    """Results and gradients of a quantizer beyond the paper."""
    quantizer = quantizer_of(case, bits, kind)
    quantizer.probed = probed
    x = case.x.clone(memory_format=torch.preserve_format).requires_grad_()
    value = quantizer.share(x, case.mask)
    return outcome(case, value, quantizer.gates, [x, quantizer.clip, quantizer.thresholds])


def probing_literal(case: Case, bits: tuple[int, ...], kind: Kind, probed: Tensor) -> Outcome:
    """Eq. 10 term by term, with gates that act as if they were shut."""
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in case[:3]]
    x, clip, thresholds = leaves
    _, gates = bit_sharing_literal(x, clip, thresholds, bits, kind, case.mask)
    value = gated_literal(x, clip, gates - (gates * probed).detach(), bits, kind)
    return outcome(case, value, gates, leaves)


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
def test_without_probes_and_factors_it_is_the_papers(
    kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...]
) -> None:
    case = make_case(kind, bits, pattern, masked=True, channels_last=False, dtype=torch.float32)
    for found, expected in zip(extended(case, bits, kind), run(case, bits, kind, literal=False), strict=True):
        assert torch.equal(found, expected)


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
        found = extended(case, bits, kind, torch.tensor(probed, dtype=torch.float64))
        shut = shut_as_well(case, probed)
        expected = extended(shut, bits, kind)
        assert found.gates.tolist() == list(pattern)
        for name in ("value", "to_x", "to_clip"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        slopes = [slope_at(some, bits, kind) for some in (case, shut)]
        assert torch.allclose(found.to_thresholds / slopes[0], expected.to_thresholds / slopes[1], atol=1e-10)


def shut_as_well(case: Case, probed: Sequence[float]) -> Case:
    """The same with thresholds of probed gates above any metric."""
    return case._replace(thresholds=case.thresholds + 2.0 * torch.tensor(probed, dtype=case.thresholds.dtype))


def slope_at(case: Case, bits: tuple[int, ...], kind: Kind) -> Tensor:
    """S(1 − S) of each gate, from its metric."""
    quantizer = quantizer_of(case, bits, kind)
    quantizer.share(case.x, case.mask)
    share = torch.sigmoid(quantizer.metric - case.thresholds)
    return share * (1 - share)


@pytest.mark.parametrize(("kind", "bits", "pattern"), CASES)
def test_both_forms_probe_alike(kind: Kind, bits: tuple[int, ...], pattern: tuple[int, ...]) -> None:
    case = make_case(kind, bits, pattern, masked=True, channels_last=False, dtype=torch.float64)
    for probed in product((0.0, 1.0), repeat=len(pattern)):
        forms = [form(case, bits, kind, torch.tensor(probed).double()) for form in (extended, probing_literal)]
        for name, found, expected in zip(Outcome._fields, *forms, strict=True):
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10), name


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
    found = extended(case, bits, kind)
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
    many = extended(case._replace(clip=case.clip.repeat(len(bits))), bits, kind)
    assert many.to_clip.sum().item() == pytest.approx(one.to_clip.item())
    for name in ("value", "gates", "to_x", "to_thresholds"):
        assert torch.allclose(getattr(many, name), getattr(one, name)), name


@pytest.mark.parametrize("by_width", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_compared_in_their_scale(kind: Kind, by_width: bool) -> None:
    case = make_case(kind, (2, 4, 8), (1, 1), masked=False, channels_last=False, dtype=torch.float64)
    case = case._replace(clip=case.clip.repeat(3)) if by_width else case
    quantizer = quantizer_of(case, (2, 4, 8), kind)
    quantizer.share(case.x, None)
    plain = quantizer.metric
    quantizer.scale = torch.tensor([0.5, 3.0], dtype=torch.float64)
    quantizer.share(case.x, None)
    assert torch.allclose(quantizer.metric, plain * quantizer.scale)
    assert quantizer.gates.tolist() == [0.0, 1.0]


# --- networks ---

MakeJob = Callable[..., SearchJob]


def network_of(job: SearchJob, quantizer: type[SharedQuantizer] = ScaledQuantizer) -> ExtendedNetwork:
    """A calibrated sharing network with pruning, before its search."""
    options = SbsOptions()
    space = search_space(job.task.network, options, prune=True)
    start = Start(state=job.pretrained, clips={})
    network = ExtendedNetwork(job, space, options.layer_settings(), start, quantizer=quantizer)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    return network


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_each_width_is_calibrated_for_itself(make_job: MakeJob, kind: Kind) -> None:
    job = make_job()
    network = network_of(job, SeparateClipsQuantizer)
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: inputs.update({name: args[0].detach()})

    for name, layer in network.layers.items():
        layer.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        network.model.train()(job.task.data.calibration_batches(1, 28)[0])
    name, layer = next(iter(network.layers.items()))
    x = standardize(layer.weight.detach()) if kind == "weight" else inputs[name]
    clips = layer.weight_quantizer.clip if kind == "weight" else layer.activation_quantizer.clip
    assert clips.tolist() == pytest.approx([best_clip(x, width, kind) for width in (2, 4, 8)])
    assert clips[0] < clips[2]


def test_the_decided_width_keeps_its_clip_value(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job, SeparateClipsQuantizer)
    name, layer = next(iter(network.layers.items()))
    clips = network.clips(network.base_policy().with_layer(name, weight_bits=4, activation_bits=8))
    assert clips[f"{name}.weight"] == pytest.approx(layer.weight_quantizer.clip[1].item())
    assert clips[f"{name}.activation"] == pytest.approx(layer.activation_quantizer.clip[2].item())


def test_probes_change_the_network_but_neither_its_gates_nor_its_cost(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    images = job.task.data.calibration_batches(1, 28)[0]
    forward = network.with_cost()
    outputs, cost = forward(images)
    network.probe(0.5, job.noise("probes"))
    probed, same_cost = forward(images)
    assert not torch.allclose(probed, outputs, atol=1e-3)
    assert torch.equal(same_cost, cost)
    assert all(quantizer.gates.all() for quantizer in network.scaled_quantizers())
    network.probe(0, job.noise("probes"))
    assert torch.equal(forward(images)[0], outputs)


def test_the_share_of_probes_is_the_one_asked_for(make_job: MakeJob) -> None:
    job = make_job()
    network, noise = network_of(job), job.noise("probes")
    drawn = []
    for _ in range(200):
        network.probe(0.3, noise)
        drawn += [quantizer.probed for quantizer in network.scaled_quantizers()]
    share = torch.cat([p for p in drawn if p is not None])
    assert float(share.mean()) == pytest.approx(0.3, abs=5 * (0.21 / len(share)) ** 0.5)
