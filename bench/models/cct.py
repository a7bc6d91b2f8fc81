"""The compact convolutional transformer (Hassani et al. 2021, "Escaping the Big Data Paradigm", arXiv 2104.05704).

Convolutions with max pooling make the tokens, and attention pooling makes one vector of them, so there is neither a
patch embedding nor a class token. CCT-2/3×2 has two blocks and two convolutions of 3×3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from bench.compression.geometry import MatMul
from bench.errors import BenchError
from bench.models.attention import Attention

_FILTERS = 64
_WIDTH = 128
_HEADS = 2
_BLOCKS = 2
_REDUCTION = 4
"""Factor by which the convolutions make the sides of a map smaller."""
_ATTENTION_DROPOUT = 0.1
_STOCHASTIC_DEPTH = 0.1
"""Probability with which the last block is left out in training; it rises linearly from 0 at the first one."""
_GROUP = 16


def cct_2_3x2(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build CCT-2/3×2, in which the heads and the hidden units of each block can be pruned.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image, a multiple of 4.
    """
    if image_size % _REDUCTION:
        raise BenchError(f"cct_2_3x2 cannot read images {image_size} pixels high; allowed: multiples of {_REDUCTION}")
    return CompactTransformer(in_channels, num_classes, (image_size // _REDUCTION) ** 2)


class CompactTransformer(nn.Module):
    """CCT-2/3×2: two convolutions, two blocks 128 wide with two heads and 128 hidden units, and attention pooling.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        tokens: Number of tokens that the convolutions make of an image, a sixteenth of its pixels.
    """

    group_size = _GROUP

    def __init__(self, in_channels: int, num_classes: int, tokens: int) -> None:
        super().__init__()
        self.tokenizer = nn.Sequential(*_convolution(in_channels, _FILTERS), *_convolution(_FILTERS, _WIDTH))
        self.positions = nn.Parameter(torch.empty(1, tokens, _WIDTH))
        rates = [_STOCHASTIC_DEPTH * index / (_BLOCKS - 1) for index in range(_BLOCKS)]
        self.blocks = nn.Sequential(*(Block(rate) for rate in rates))
        self.norm = nn.LayerNorm(_WIDTH)
        self.pool = AttentionPool()
        self.fc = nn.Linear(_WIDTH, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as the authors do."""
        nn.init.trunc_normal_(self.positions, std=0.2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        tokens = self.tokenizer(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.pool(self.norm(self.blocks(tokens))))  # type: ignore[no-any-return]


def _convolution(in_channels: int, channels: int) -> list[nn.Module]:
    """Return a 3×3 convolution, its activation, and pooling that halves the map."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [conv, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]


class Block(nn.Module):
    """Attention and a perceptron. The second normalisation is of the residual stream itself.

    Args:
        stochastic_depth: Probability with which either part is left out in training, for each image.
    """

    def __init__(self, stochastic_depth: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attention = ProjectedAttention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.fc1 = nn.Linear(_WIDTH, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, _WIDTH)
        self.stochastic_depth = StochasticDepth(stochastic_depth, "row")

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, tokens, width) to tokens of the same shape."""
        x = self.norm2(x + self.stochastic_depth(self.attention(self.norm1(x))))
        hidden = F.gelu(self.fc1(x))
        result: Tensor = x + self.stochastic_depth(self.fc2(hidden))
        return result


class ProjectedAttention(Attention):
    """Self-attention whose projection to queries, keys and values has no bias."""

    def __init__(self) -> None:
        super().__init__(_WIDTH // _HEADS, _ATTENTION_DROPOUT)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH, bias=False)
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, tokens, width) to tokens of the same shape."""
        query, key, value = self.split_heads(self.qkv(x))
        mixed, _ = self.attend(query, key, value, scale=(_WIDTH // _HEADS) ** -0.5)
        return self.proj(self.join_heads(mixed))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """The mean of all tokens, weighted by the softmax of one score for each."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(_WIDTH, 1)
        self.mix = MatMul()

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, tokens, width) to vectors (N, width)."""
        weights = F.softmax(self.score(x), dim=1)
        mean: Tensor = self.mix(weights.transpose(1, 2), x)
        return mean.squeeze(1)
