"""Attention that calls a module for each of its multiplications.

The projections are linear layers that are called, and the two products of activations are modules `MatMul`: `scores`
multiplies queries by keys, `mix` multiplies probabilities by values. So a compressed network can replace all of them.
Scaling, position biases, softmax and dropout are in between. Heads are split, joined and biased by modules too, so that
heads can be removed.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.compression.geometry import MatMul
from bench.compression.heads import JoinHeads, PairBias, SplitHeads
from bench.errors import BenchError

_LARGEST_SCALE = 100.0
"""Largest factor of cosine similarities (Liu et al. 2022, Swin Transformer V2, Section 3.2)."""

_APART = -100.0
"""Bias between tokens of different regions; their probability after the softmax is almost 0."""

Pair = tuple[int, int]
"""Numbers for the vertical and the horizontal direction."""

for _name in ("cut", "uncut", "shift_bias"):
    fx.wrap(_name)  # symbolic tracing does not know the sizes on which they branch


class Attention(nn.Module):
    """The part of attention that all forms share.

    Args:
        channels: Channels of a head.
        dropout: Share of the probabilities that are set to 0 in training.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.split_heads = SplitHeads(channels)
        self.join_heads = JoinHeads()
        self.scores = MatMul()
        self.mix = MatMul()
        self.probability_dropout = nn.Dropout(dropout)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute softmax(scale · Q Kᵀ + bias) V.

        Args:
            query: Queries, shape (…, heads, tokens, channels), as keys and values.
            key: Keys.
            value: Values.
            scale: Factor of the scores, broadcastable to (…, heads, tokens, tokens).
            bias: Numbers that are added to the scores, broadcastable to them.

        Returns:
            The result, of the shape of the queries, and the probabilities, shape (…, heads, tokens, tokens).
        """
        scores = self.scores(query, key.transpose(-2, -1)) * scale
        biased = scores if bias is None else scores + bias
        probabilities = self.probability_dropout(F.softmax(biased, dim=-1))
        return self.mix(probabilities, value), probabilities


class SelfAttention(Attention):
    """The function of `nn.MultiheadAttention`, called in the same way, for self-attention without masks.

    State of `nn.MultiheadAttention` can be loaded: its `in_proj_weight` and `in_proj_bias` are `in_proj.weight` and
    `in_proj.bias` here.

    Args:
        original: Attention whose parameters are taken over; it has its batch first, and one width.
        name: Module path of the attention, for messages.
    """

    batch_first = True
    in_proj_bias = None
    """`nn.TransformerEncoderLayer` reads it, and does not replace attention by a fused kernel where it is `None`."""

    def __init__(self, original: nn.MultiheadAttention, name: str) -> None:
        super().__init__(original.head_dim, original.dropout)
        self.in_proj = _linear(original.in_proj_weight, original.in_proj_bias)
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.scale = original.head_dim**-0.5
        self.name = name
        _rename_when_loaded(self, {"in_proj_weight": "in_proj.weight", "in_proj_bias": "in_proj.bias"})

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: None = None,
        need_weights: bool = True,
        attn_mask: None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Map tokens (N, tokens, width) to tokens of the same shape, and return the probabilities if they are needed.

        Raises:
            BenchError: Keys or values are other tensors than the queries, or there is a mask.
        """
        if key is not query or value is not query:
            raise BenchError(f"attention '{self.name}' reads several tensors; allowed: self-attention of one tensor")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise BenchError(f"attention '{self.name}' is called with a mask; allowed: attention without masks")
        queries, keys, values = self.split_heads(self.in_proj(query))
        mixed, probabilities = self.attend(queries, keys, values, scale=self.scale)
        result = self.out_proj(self.join_heads(mixed))
        if not need_weights:
            return result, None
        return result, probabilities.mean(dim=-3) if average_attn_weights else probabilities


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer of existing parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = cast(nn.Parameter, weight)
    if bias is not None:
        layer.bias = cast(nn.Parameter, bias)
    return layer


def _rename_when_loaded(module: nn.Module, names: Mapping[str, str]) -> None:
    """Let a module load state of its original form, whose entries have other names."""
    module.register_load_state_dict_pre_hook(partial(_rename, names=names))  # type: ignore[no-untyped-call]


def _rename(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object, names: Mapping[str, str]) -> None:
    for old, new in names.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)


class WindowAttention(Attention):
    """The function of torchvision's `ShiftedWindowAttention` (Liu et al. 2021), with the same names of parameters.

    Args:
        original: Attention whose parameters are taken over.
        name: Module path of the attention; not used.
    """

    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, original: nn.Module, name: str) -> None:
        channels = original.qkv.in_features // int(original.num_heads)  # type: ignore[arg-type, operator, union-attr]
        super().__init__(channels, original.attention_dropout)  # type: ignore[arg-type]
        _take_over(self, original)
        self.pair_bias = PairBias()
        self.window = cast(Pair, tuple(original.window_size))  # type: ignore[arg-type]
        self.shift = cast(Pair, tuple(original.shift_size))  # type: ignore[arg-type]
        self.output_dropout = nn.Dropout(original.dropout)  # type: ignore[arg-type]
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """Map a map (N, height, width, channels) to one of the same shape."""
        tokens = cut(x, self.window, self.shift)
        bias = self.position_bias() + shift_bias(x, self.window, self.shift)
        query, key, value = self.split_heads(self.project(tokens))
        mixed = self.join_heads(self.attend_windows(query, key, value, bias))
        return uncut(self.output_dropout(self.proj(mixed)), x, self.window, self.shift)

    def project(self, tokens: Tensor) -> Tensor:
        """Compute queries, keys and values of all heads, shape (N, windows, tokens, 3 · channels)."""
        return self.qkv(tokens)  # type: ignore[no-any-return]

    def attend_windows(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend in every window: (N, windows, heads, tokens, channels)."""
        return self.attend(query, key, value, self.scale, bias)[0]

    def position_bias(self) -> Tensor:
        """Return the bias of every head for every pair of tokens, shape (heads, tokens, tokens)."""
        return self.pair_bias(self.relative_position_bias_table, self.relative_position_index)  # type: ignore[no-any-return]


class CosineWindowAttention(WindowAttention):
    """The function of torchvision's `ShiftedWindowAttentionV2` (Liu et al. 2022).

    Scores are cosine similarities times a learned factor. A small network computes the position bias. Keys have no
    bias: the part of the projection's bias that would be theirs has no effect. `qkv.bias` is `qkv_bias` here.
    """

    qkv_bias: Tensor | None
    logit_scale: Tensor
    cpb_mlp: nn.Sequential
    relative_coords_table: Tensor

    def __init__(self, original: nn.Module, name: str) -> None:
        super().__init__(original, name)
        self.register_parameter("qkv_bias", cast(nn.Parameter | None, self.qkv.bias))
        self.qkv = _linear(self.qkv.weight, None)
        _rename_when_loaded(self, {"qkv.bias": "qkv_bias"})

    def project(self, tokens: Tensor) -> Tensor:
        """Compute queries, keys and values, with the bias of queries and values."""
        projected: Tensor = self.qkv(tokens)
        if self.qkv_bias is None:
            return projected
        query, key, value = self.qkv_bias.chunk(3)
        return projected + torch.cat([query, torch.zeros_like(key), value])

    def attend_windows(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend by cosine similarity."""
        scale = self.logit_scale.clamp(max=math.log(_LARGEST_SCALE)).exp()
        return self.attend(F.normalize(query, dim=-1), F.normalize(key, dim=-1), value, scale, bias)[0]

    def position_bias(self) -> Tensor:
        """Return 16 · sigmoid of what the network computes from the distance of two tokens."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        return 16 * self.pair_bias(table, self.relative_position_index).sigmoid()  # type: ignore[no-any-return]


class RelativeAttention(Attention):
    """The function of torchvision's `RelativePositionalMultiHeadAttention`, with the same names of parameters.

    It is the attention of MaxViT (Tu et al. 2022). As in torchvision, the scores are divided by the root of the width,
    not of a head's channels.

    Args:
        original: Attention whose parameters are taken over.
        name: Module path of the attention; not used.
    """

    to_qkv: nn.Linear
    merge: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, original: nn.Module, name: str) -> None:
        super().__init__(int(original.head_dim), dropout=0.0)  # type: ignore[arg-type]
        _take_over(self, original)
        self.pair_bias = PairBias()
        self.scale = float(original.scale_factor)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, windows, tokens, channels) to the same shape."""
        bias = self.pair_bias(self.relative_position_bias_table, self.relative_position_index.flatten())
        query, key, value = self.split_heads(self.to_qkv(x))
        mixed, _ = self.attend(query, key, value, self.scale, bias)
        return self.merge(self.join_heads(mixed))  # type: ignore[no-any-return]


def _take_over(module: nn.Module, original: nn.Module) -> None:
    """Register children, parameters and buffers of another module under the same names."""
    for name, child in original.named_children():
        module.add_module(name, child)
    for name, parameter in original.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, buffer in original.named_buffers(recurse=False):
        module.register_buffer(name, buffer)


# --- windows of a map ------------------------------------------------------------------------------------------------
# Attention does not look from one window into another (Liu et al. 2021, Section 3.2). A map whose sides are not
# multiples of the window is filled up with zeros. A shifted division rolls the map first, so that windows at the edge
# hold regions that are not neighbours; `shift_bias` keeps these apart. A side that fits into one window is not shifted.


def cut(x: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Cut a map into windows.

    Args:
        x: Map, shape (N, height, width, channels).
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.

    Returns:
        Tokens of each window, shape (N, windows, tokens, channels).
    """
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    down, right = _used_shift((height, width), window, shift)
    return _windows(torch.roll(padded, (-down, -right), dims=(1, 2)), window)


def uncut(tokens: Tensor, like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Put windows together: the inverse of `cut` for the same arguments.

    Args:
        tokens: Tokens of each window, shape (N, windows, tokens, channels).
        like: Map that was cut; only its size is used.
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.
    """
    _, height, width, _ = like.shape
    counts = (-(-height // window[0]), -(-width // window[1]))
    grid = torch.unflatten(torch.unflatten(tokens, 2, window), 1, counts)
    x = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = torch.roll(x, _used_shift((height, width), window, shift), dims=(1, 2))
    return x[:, :height, :width]


def shift_bias(like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Return the bias that keeps the regions of a shifted window apart, shape (windows, 1, tokens, tokens).

    Args:
        like: Map that is cut, shape (N, height, width, channels).
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.
    """
    sizes = (like.shape[1], like.shape[2])
    used = _used_shift(sizes, window, shift)
    rows, columns = (
        _regions(-(-size // own) * own, own, moved, like) for size, own, moved in zip(sizes, window, used, strict=True)
    )
    regions = _windows((3 * rows.unsqueeze(1) + columns)[None, :, :, None], window).squeeze((0, 3))
    different = regions.unsqueeze(1) != regions.unsqueeze(2)
    return (different * like.new_tensor(_APART)).unsqueeze(1)


def _used_shift(size: Pair, window: Pair, shift: Pair) -> Pair:
    down, right = (0 if side <= own else moved for side, own, moved in zip(size, window, shift, strict=True))
    return down, right


def _windows(x: Tensor, window: Pair) -> Tensor:
    """Cut a map whose sides are multiples of the window."""
    grid = torch.unflatten(torch.unflatten(x, 2, (-1, window[1])), 1, (-1, window[0]))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _regions(side: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Number the regions of one side of a rolled map: the last window has two, all others are region 0."""
    position = torch.arange(side, device=like.device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= side - window).long() + (position >= side - shift).long()
