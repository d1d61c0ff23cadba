"""BatchNorm for the channel counts that torch's CPU kernel is slow for; equal to it to rounding.

With channels last, that kernel handles 8 or 16 channels of a pixel at once and the rest one by one:
12 channels take far longer than 16. Here r neighbouring pixels count as one with r times the
channels, a view of the same memory; plain sums and products over it are fast, and the r parts of a
channel's sum are added at the end. Networks whose channels are all multiples of 8 gain nothing and
are left alone.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

LANES = 16  # float32 numbers that the widest vector instructions handle at once


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, (N, C, H, W) -> the same; trains on `foldable` images in its own way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.affine and self.track_running_stats and foldable(x)):
            return super().forward(x)
        y, mean, variance = FoldedNorm.apply(x, self.weight, self.bias, self.eps)
        pixels = x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum  # None: the mean over all batches so far
            if share is None:
                share = 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (pixels / (pixels - 1)), share)
        return y


class FoldedNorm(torch.autograd.Function):
    """(x, weight, bias, eps) -> (weight (x - mean) / sqrt(variance + eps) + bias, mean, variance).

    The last two, (C,), are of this batch, the variance divided by the number of pixels; no gradient
    flows through them.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        rows, c = as_rows(x), x.shape[1]
        r, pixels = folds(c), x.numel() // c
        mean = per_channel(rows.sum(0), c) / pixels
        variance = per_channel((rows - mean.repeat(r)).square_().sum(0), c) / pixels
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        # Filled through a view; if it were a view itself, no in-place ReLU could follow.
        y = torch.empty_like(x)
        torch.addcmul((bias - mean * scale).repeat(r), rows, scale.repeat(r), out=as_rows(y))
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, *_):
        x, weight, mean, inverse = ctx.saved_tensors
        rows, grads, c = as_rows(x), as_rows(grad_y), x.shape[1]
        r, pixels = folds(c), x.numel() // c
        grad_bias = per_channel(grads.sum(0), c)
        grad_weight = per_channel((rows - mean.repeat(r)).mul_(grads).sum(0), c) * inverse
        # weight * inverse * (grad_y - grad_bias / pixels - (x - mean) * inverse * grad_weight /
        # pixels)
        scale = weight * inverse
        slope = -scale * inverse * grad_weight / pixels
        constant = -scale * grad_bias / pixels - slope * mean
        grad_x = torch.empty_like(x)
        torch.addcmul(constant.repeat(r), rows, slope.repeat(r), out=as_rows(grad_x))
        as_rows(grad_x).addcmul_(grads, scale.repeat(r))
        return grad_x, grad_weight, grad_bias, None


def folds(channels: int) -> int:
    """How many pixels together have a multiple of LANES numbers."""
    return LANES // math.gcd(channels, LANES)


def foldable(x: torch.Tensor) -> bool:
    """Whether x (N, C, H, W) is float32 on the CPU, channels last, its pixels a multiple of r."""
    return (x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.numel() > x.shape[1] and x.numel() % (x.shape[1] * folds(x.shape[1])) == 0)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as (N H W / r, r C) with r = folds(C); a view where x is channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, folds(x.shape[1]) * x.shape[1])


def per_channel(sums: torch.Tensor, channels: int) -> torch.Tensor:
    """(r C,) -> (C,): the r parts of each channel added."""
    return sums.view(-1, channels).sum(0)


@contextlib.contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """While inside, the network's BatchNorm layers of uneven width train faster on a CPU.

    Only the class of exactly those `nn.BatchNorm2d` is exchanged, and given back at the end, also
    after an exception; parameters, buffers and state dict are the same throughout.
    """
    layers = [layer for layer in network.modules()
              if type(layer) is nn.BatchNorm2d and layer.num_features % 8]
    for layer in layers:
        layer.__class__ = FoldedBatchNorm2d
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.BatchNorm2d
