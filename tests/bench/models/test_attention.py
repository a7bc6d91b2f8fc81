"""Attention in the normal form: the function, gradients and state of the original modules."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlockV2,
)

from bench.compression.geometry import MatMul
from bench.errors import BenchError
from bench.models.attention import SelfAttention
from bench.models.cct import AttentionPool, Block, ProjectedAttention
from bench.models.fitting import fit
from bench.models.normal_form import normal_form


class Called(nn.Module):
    """A module that is called with one tensor several times."""

    def __init__(self, attention: nn.Module, times: int, **options: Any) -> None:
        super().__init__()
        self.attention = attention
        self.times, self.options = times, options

    def forward(self, x: Tensor) -> Any:
        return self.attention(*[x] * self.times, **self.options)


def multihead(**options: Any) -> nn.Module:
    return Called(nn.MultiheadAttention(12, 3, batch_first=True, **options), 3)


def weights_of_heads() -> nn.Module:
    return Called(nn.MultiheadAttention(12, 3, batch_first=True), 3, average_attn_weights=False)


def no_weights() -> nn.Module:
    return Called(nn.MultiheadAttention(12, 3, batch_first=True), 3, need_weights=False)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)


def vision_transformer() -> nn.Module:
    return VisionTransformer(8, 4, 2, 3, 12, 20, num_classes=5)


def swin(**options: Any) -> nn.Module:
    return SwinTransformer([2, 2], 8, [2, 2], [2, 4], [3, 2], stochastic_depth_prob=0.0, num_classes=5, **options)


def swin_v2() -> nn.Module:
    return swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


TOKENS, MAP = (2, 5, 12), (2, 5, 7, 8)
ORIGINALS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "multihead": (multihead, TOKENS),
    "multihead without biases": (lambda: multihead(bias=False), TOKENS),
    "multihead, weights of heads": (weights_of_heads, TOKENS),
    "multihead, no weights": (no_weights, TOKENS),
    "multihead, one image": (multihead, TOKENS[1:]),
    "encoder layer": (encoder_layer, TOKENS),
    "vision transformer": (vision_transformer, (2, 3, 8, 8)),
    "windows that do not fit": (lambda: ShiftedWindowAttention(8, [3, 4], [0, 0], 2), MAP),
    "shifted windows": (lambda: ShiftedWindowAttention(8, [2, 3], [1, 1], 2), MAP),
    "shifted without biases": (lambda: ShiftedWindowAttention(8, [2, 3], [1, 2], 2, False, False), MAP),
    "one direction fits in a window": (lambda: ShiftedWindowAttention(8, [6, 3], [3, 1], 2), MAP),
    "one window": (lambda: ShiftedWindowAttention(8, [7, 7], [3, 3], 4), MAP),
    "cosine windows": (lambda: ShiftedWindowAttentionV2(8, [2, 3], [1, 1], 2), MAP),
    "cosine windows without biases": (lambda: ShiftedWindowAttentionV2(8, [3, 3], [1, 1], 2, qkv_bias=False), MAP),
    "swin": (swin, (2, 3, 18, 14)),
    "swin v2": (swin_v2, (2, 3, 18, 14)),
    "relative attention": (lambda: RelativePositionalMultiHeadAttention(8, 4, 9), (2, 3, 9, 8)),
}


def randomised(model: nn.Module) -> nn.Module:
    """Give every parameter random values in double precision; some start at 0 or 1."""
    torch.manual_seed(1)
    model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def results(model: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return outputs, and gradients of a random function of them for the input and all parameters."""
    x = x.clone().requires_grad_()
    given = model(x)
    outputs = [output for output in (given if isinstance(given, tuple) else (given,)) if output is not None]
    generator = torch.Generator().manual_seed(3)
    sum(
        (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum() for output in outputs
    ).backward()  # type: ignore[union-attr]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert x.grad is not None
    return outputs, gradients | {"input": x.grad}


def new_names(model: nn.Module) -> dict[str, str]:
    """Return the names in the normal form by the names in the original."""
    cosine = {name for name, module in model.named_modules() if isinstance(module, ShiftedWindowAttentionV2)}
    biases = {f"{name}.qkv.bias".lstrip("."): f"{name}.qkv_bias".lstrip(".") for name in cosine}
    return {name: biases.get(name, name.replace("in_proj_", "in_proj.")) for name in model.state_dict()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", ORIGINALS)
def test_function_and_gradients_are_the_original_s(case: str, training: bool) -> None:
    make, shape = ORIGINALS[case]
    original = randomised(make()).train(training)
    explicit = normal_form(copy.deepcopy(original), "mine")
    names = new_names(original)
    assert {name: tuple(p.shape) for name, p in explicit.state_dict().items()} == {
        names[name]: tuple(p.shape) for name, p in original.state_dict().items()
    }
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs, gradients = results(explicit, x)
    expected, expected_gradients = results(original, x)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for name, theirs in expected_gradients.items():
        torch.testing.assert_close(gradients[names.get(name, name)], theirs, rtol=1e-8, atol=1e-10)


def products_called(model: nn.Module, x: Tensor) -> int:
    """Count the calls of modules that multiply; a fast path of PyTorch would call none."""
    calls: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, MatMul | nn.Linear):
            module.register_forward_hook(lambda module, _, __: calls.append(module))
    with torch.no_grad():
        model.eval()(x)
    return len(calls)


@pytest.mark.parametrize(
    ("case", "calls"), [("encoder layer", 6), ("vision transformer", 2 * 6 + 1), ("swin", 4 * 6 + 2)]
)
def test_every_multiplication_is_a_module_that_is_called(case: str, calls: int) -> None:
    make, shape = ORIGINALS[case]
    assert products_called(normal_form(make(), "mine"), torch.zeros(shape)) == calls


@pytest.mark.parametrize("case", ["multihead", "vision transformer", "swin", "swin v2", "relative attention"])
def test_symbolic_tracing_keeps_the_function(case: str) -> None:
    make, shape = ORIGINALS[case]
    model = normal_form(randomised(make()), "mine").eval()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("case", ["multihead", "vision transformer", "swin", "swin v2"])
def test_state_of_the_original_can_be_loaded(case: str) -> None:
    original = randomised(ORIGINALS[case][0]())
    model = copy.deepcopy(normal_form(ORIGINALS[case][0]().double(), "mine"))
    model.load_state_dict(original.state_dict())
    names = new_names(original)
    assert all(torch.equal(model.state_dict()[names[name]], value) for name, value in original.state_dict().items())
    again = normal_form(ORIGINALS[case][0]().double(), "mine")
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("case", ["vision transformer", "swin", "swin v2"])
def test_a_checkpoint_of_the_original_fits(case: str) -> None:
    original = randomised(ORIGINALS[case][0]()).float()
    model = normal_form(ORIGINALS[case][0](), "mine")
    fitted = fit({"state_dict": {f"module.{name}": value for name, value in original.state_dict().items()}}, model, "m")
    names = new_names(original)
    assert all(torch.equal(fitted.state[names[name]], value) for name, value in original.state_dict().items())
    assert ("its old names are translated by the model" in fitted.note) == (case != "swin")


def test_parameters_are_the_same_objects() -> None:
    """Tied and frozen parameters, and those that an optimizer holds, stay what they are."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.in_proj_weight.requires_grad_(False)
    explicit = normal_form(nn.ModuleDict({"first": attention, "second": attention}), "mine")
    first = explicit.get_submodule("first")
    assert isinstance(first, SelfAttention) and explicit.get_submodule("second") is first
    assert first.in_proj.weight is attention.in_proj_weight and first.out_proj.bias is attention.out_proj.bias


def test_dropout_of_probabilities_stays() -> None:
    attention = normal_form(nn.MultiheadAttention(8, 2, dropout=0.75, batch_first=True), "mine")
    x = torch.randn(64, 8, 8)
    weights = attention.train()(x, x, x, average_attn_weights=False)[1]
    assert float((weights == 0).double().mean()) == pytest.approx(0.75, abs=0.02)
    assert not bool((attention.eval()(x, x, x)[1] == 0).any())


class Own(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def hooked() -> nn.Module:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.MultiheadAttention(8, 2), r"MultiheadAttention that has its batch second"),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4, batch_first=True), "with keys or values of another width"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), "with extra keys"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True), "with a key of zeros"),
        (lambda: Own(8, 2, batch_first=True), "with a forward function of its own"),
        (hooked, "with hooks"),
        (
            lambda: parametrizations.weight_norm(nn.MultiheadAttention(8, 2, batch_first=True), "in_proj_weight"),
            "with parametrized weights",
        ),
    ],
)
def test_other_attention_is_refused_by_name(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(BenchError, match=f"^layer 'block.attn' of model 'mine' is a .*{reason}"):
        normal_form(nn.ModuleDict({"block": nn.ModuleDict({"attn": make()})}), "mine")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attn_mask": torch.zeros(5, 5)}, "called with a mask"),
        ({"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}, "called with a mask"),
        ({"is_causal": True}, "called with a mask"),
    ],
)
def test_masks_are_refused_by_name(options: dict[str, Any], reason: str) -> None:
    model = normal_form(Called(nn.MultiheadAttention(12, 3, batch_first=True), 3, **options), "mine")
    with pytest.raises(BenchError, match=f"^attention 'attention' is {reason}"):
        model(torch.zeros(TOKENS))


def test_attention_between_tensors_is_refused_by_name() -> None:
    attention = normal_form(nn.MultiheadAttention(12, 3, batch_first=True), "mine")
    x = torch.zeros(TOKENS)
    with pytest.raises(BenchError, match=r"^attention '' reads several tensors"):
        attention(x, x, x + 1)


# --- the compact transformer, whose parts are compared with PyTorch's own functions --------------------------------


def test_attention_of_the_compact_transformer() -> None:
    attention = randomised(ProjectedAttention()).eval()
    x = torch.randn(2, 5, 128, dtype=torch.float64)
    parts = F.linear(x, attention.qkv.weight).chunk(3, dim=-1)  # type: ignore[arg-type]
    heads = [torch.stack(part.split(64, dim=-1), dim=1) for part in parts]
    mixed = F.scaled_dot_product_attention(*heads)
    joined = torch.cat([mixed[:, 0], mixed[:, 1]], dim=-1)
    expected = F.linear(joined, attention.proj.weight, attention.proj.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(attention(x), expected)


def test_the_second_normalisation_is_of_the_stream() -> None:
    block = randomised(Block(0.0)).eval()
    x = torch.randn(2, 5, 128, dtype=torch.float64)
    stream = F.layer_norm(x + block.attention(block.norm1(x)), (128,), block.norm2.weight, block.norm2.bias)  # type: ignore[operator,arg-type]
    hidden = F.gelu(stream @ block.fc1.weight.T + block.fc1.bias)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(block(x), stream + hidden @ block.fc2.weight.T + block.fc2.bias)  # type: ignore[union-attr,operator]


def test_pooling_is_a_weighted_mean() -> None:
    pool = randomised(AttentionPool())
    x = torch.randn(2, 5, 128, dtype=torch.float64)
    scores = x @ pool.score.weight[0] + pool.score.bias  # type: ignore[union-attr,operator]
    expected = torch.stack([(one.exp() / one.exp().sum()) @ tokens for one, tokens in zip(scores, x, strict=True)])
    torch.testing.assert_close(pool(x), expected)
