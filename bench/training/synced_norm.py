"""Batch normalisation with the statistics of the whole batch when replicas share it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench import replicas
from bench.compression.compress import replace_layer
from bench.errors import BenchError

_OVER = (0, 2, 3)


class SyncedNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all replicas' shares together.

    It has the same state as `nn.BatchNorm2d`. All shares must have the same size, as those of
    `TaskData.training_batches` have.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W); without replicas exactly as the base class."""
        if not self.training or replicas.count() == 1:
            return super().forward(input)
        mean, variance = _statistics(input)
        self._update(mean, variance, replicas.count() * input.numel() // input.shape[1])
        output: Tensor = _Normalize.apply(input, mean, variance, self.weight, self.bias, self.eps)
        return output

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, size: int) -> None:
        """Update the stored statistics with those of a batch with `size` values per channel."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance * (size / (size - 1)), step)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance per channel over all replicas' shares, each (C,), in one all-reduce.

    The variance is the mean of the shares' variances plus the variance of their means. A difference of squares would
    lose precision by cancellation.
    """
    variance, mean = torch.var_mean(x, _OVER, correction=0)
    shares = x.new_zeros(replicas.count(), 2, x.shape[1])
    shares[replicas.rank()] = torch.stack([mean, variance])
    means, variances = replicas.total(shares).unbind(1)
    whole = means.mean(0)
    return whole, variances.mean(0) + (means - whole).square().mean(0)


class _Normalize(torch.autograd.Function):
    """(x − mean)/std · weight + bias, with gradients through the mean and std of all replicas' shares."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, mean, torch.rsqrt(variance + eps), weight)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, Tensor | None, Tensor | None, None]:
        x, mean, scale, weight = ctx.saved_tensors
        grad = grads[0]
        normalized = (x - _expand(mean)) * _expand(scale)
        own = torch.stack([grad.sum(_OVER), (grad * normalized).sum(_OVER)])
        # Each replica's loss depends on the shares of all others through the statistics.
        size = replicas.count() * x.numel() // x.shape[1]
        mean_grad, std_grad = replicas.total(own) / size
        factor = scale if weight is None else scale * weight
        for_x = (grad - _expand(mean_grad) - normalized * _expand(std_grad)) * _expand(factor)
        if weight is None:
            return for_x, None, None, None, None, None
        return for_x, None, None, own[1], own[0], None


def _expand(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Replace a model's batch normalisations by shared ones, with their parameters and buffers.

    Raises:
        BenchError: The model has batch normalisations of another kind.
    """
    for path, norm in list(model.named_modules()):
        if not isinstance(norm, _BatchNorm) or isinstance(norm, SyncedNorm2d):
            continue
        if type(norm) is not nn.BatchNorm2d:
            raise BenchError(
                f"layer '{path}' is a {type(norm).__name__}, which does not work on several devices; only BatchNorm2d "
                "does: use --devices 1"
            )
        replace_layer(model, path, _shared(norm))
    return model


def _shared(norm: nn.BatchNorm2d) -> SyncedNorm2d:
    shared = SyncedNorm2d(
        norm.num_features, norm.eps, norm.momentum, affine=norm.affine, track_running_stats=norm.track_running_stats
    )
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
    shared.num_batches_tracked = norm.num_batches_tracked
    return shared.train(norm.training)
