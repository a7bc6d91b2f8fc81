import pytest
import torch
from torch import Tensor

from bench.compression.quantizer import quantize_literal
from methods.shared.quantizers.mixture import mixture


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (40, 16, 32, 32)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_mixture_is_the_sum_of_its_paths(shape: tuple[int, ...], channels_last: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws, dtype=torch.float64)
    grad = torch.randn(shape, generator=draws, dtype=torch.float64)
    if channels_last:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    bits = (2, 3, 8)
    leaves = [
        x.requires_grad_(),
        torch.tensor([0.7, 1.1, 1.9], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True),
    ]
    found = mixture(*leaves, bits)
    paths = zip(leaves[1], leaves[2], bits, strict=True)
    expected = sum(p * quantize_literal(x, clip, width, "activation") for clip, p, width in paths)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
