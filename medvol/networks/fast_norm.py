"""Instance normalisation that stays in the channels-last layout.

torch's instance norm copies a channels-last volume into the default layout, normalises there and leaves the next
convolution to copy it back: of one 48-channel volume of 96 cubed that is 120 to 160 ms in bfloat16 and 230 to 270 ms in
float32 on two cores, as much as the convolution. Normalising one volume over its voxels is batch normalisation of a
batch of one, for which torch has channels-last kernels: 12 and 20 ms, backward 23 instead of 206 ms. They add up all
voxels in one float32 number, which costs a float32 result its last four digits; so the statistics of large volumes are
taken over slabs, by a kernel that computes nothing else, and are then combined. Where channels are few, several voxels
are put side by side: their rows would leave the processor's vectors half empty (four volumes of 16 channels and 40 x 56
x 40 voxels in bfloat16: 1.5 instead of 4 ms). In the default layout group norm with a group per channel is torch's
fastest exact kernel (19 instead of 92 ms in float32).

It is right as well where torch is not: `torch.nn.functional.instance_norm` of a single volume has wrong gradients on a
processor when those from above come in channels last (torch 2.13).

Rejected: `group_norm` in channels last, whose backward is 3 times slower than what it replaces; `var_mean`, which is
not vectorised over channels-last voxels (145 ms).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medvol.networks.exporting import is_exporting

SLAB_ROWS = 16384  # values summed in one float32 number: error 2e-6
FULL_ROW = 96  # values side by side from which on the kernels work at full speed
WIDE_FOLD = 2  # voxels side by side up to which the backward kernel for a whole volume is the faster one


@final
class FastInstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, the same parameters by the same names, fast on a processor in both layouts.

    Running statistics are not supported: `use_fast_norm` leaves modules that keep them as they are.
    """

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (batch, channel, x, y, z) with each channel of each volume at mean 0 and variance 1."""
        if self.track_running_stats:
            return super().forward(volumes)
        return instance_norm(volumes, self.weight, self.bias, self.eps)


def use_fast_norm(network: nn.Module) -> nn.Module:
    """Replace every `InstanceNorm3d` in `network` by the fast one, in place, and return the network.

    Parameters are shared, not copied: an optimiser or a state dict made before stays valid.
    """
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.InstanceNorm3d and not child.track_running_stats:
                fast = FastInstanceNorm3d(child.num_features, eps=child.eps, affine=child.affine)
                fast.weight, fast.bias = child.weight, child.bias
                setattr(module, name, fast.train(child.training))
    return network


def instance_norm(
    volumes: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return each channel of each volume at mean 0 and variance 1, then scaled by `weight` and shifted by `bias`.

    Args:
        volumes: (batch, channel, x, y, z), any floating type; the result has its type and its layout.
        weight: Scale, (channel,); with `bias`, or neither.
        bias: Shift, (channel,).
        eps: Added to the variance.

    Raises:
        ValueError: If a volume has a single voxel, which has no variance (torch's own rule).
    """
    if volumes[0, 0].numel() == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {tuple(volumes.shape)}")
    # Compilers and exporters know torch's own operator and fuse or translate it themselves.
    foreign = volumes.device.type != "cpu" or is_exporting()
    if foreign or volumes.dim() != 5:
        return functional.instance_norm(volumes, weight=weight, bias=bias, eps=eps)
    if volumes.is_contiguous() or not volumes.is_contiguous(memory_format=torch.channels_last_3d):
        return functional.group_norm(volumes, volumes.shape[1], weight, bias, eps)
    # With parameters in bfloat16 the kernel would keep its statistics in bfloat16 too.
    exact = torch.promote_types(volumes.dtype, torch.float32)
    channels = volumes.shape[1]
    weight = volumes.new_ones(channels, dtype=exact) if weight is None else weight.to(exact)
    bias = volumes.new_zeros(channels, dtype=exact) if bias is None else bias.to(exact)
    result: Tensor = _ChannelsLast.apply(volumes, weight, bias, eps)
    return result


class _ChannelsLast(torch.autograd.Function):
    """Batch normalisation of each volume on its own."""

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result = torch.empty_like(volumes)
        mean, scale = _normalise(volumes, weight, bias, eps, result)
        ctx.save_for_backward(volumes, weight, mean, scale)
        ctx.eps = eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        volumes, weight, mean, scale = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        gradients = _gradients_of_rows if _fold(volumes) > WIDE_FOLD else _gradients_of_volumes
        for_volumes, for_weight, for_bias = gradients(gradient, volumes, weight, mean, scale)
        return for_volumes, for_weight.sum(0), for_bias.sum(0), None


def _normalise(volumes: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the normalised volumes into `out`; return mean and inverse standard deviation, (batch, channel) each."""
    fold = _fold(volumes)
    rows, target = _rows(volumes, fold), _rows(out, fold)
    weight, bias = (one.repeat(len(rows), fold) for one in (weight, bias))
    if rows.shape[1] <= SLAB_ROWS and fold == 1:
        return _batch_norm(rows, weight, bias, None, eps, target)
    mean, variance = _moments(rows, fold, weight.dtype)
    _batch_norm(rows, weight, bias, (mean.repeat(1, fold), variance.repeat(1, fold)), eps, target)
    return mean, torch.rsqrt(variance + eps)


def _fold(volumes: Tensor) -> int:
    """Return how many voxels are put side by side, so that a row fills the processor's vectors."""
    fold, voxels = 1, volumes[0, 0].numel()
    while fold * volumes.shape[1] < FULL_ROW and voxels % (2 * fold) == 0 and voxels > SLAB_ROWS:
        fold *= 2
    return fold


def _rows(volumes: Tensor, fold: int) -> Tensor:
    """Return channels-last volumes as a view (batch, voxels / fold, fold * channels)."""
    return volumes.permute(0, 2, 3, 4, 1).view(len(volumes), -1, fold * volumes.shape[1])


def _batch_norm(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    eps: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write the normalised rows into `out`; all else, mean and variance too, is (batch, column), None for their own."""
    mean, scale = torch.empty_like(weight), torch.empty_like(weight)
    for index in range(len(rows)):
        known = (moments[0][index], moments[1][index]) if moments else (None, None)
        torch.ops.aten.native_batch_norm.out(
            rows[index],
            weight[index],
            bias[index],
            *known,
            moments is None,
            0.0,
            eps,
            out=out[index],
            save_mean=mean[index],
            save_invstd=scale[index],
        )
    return mean, scale


def _moments(rows: Tensor, fold: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and variance, (batch, channel) each, of rows of `fold` voxels, combined from slabs in float64."""
    # Buffers in float32 keep the kernel's statistics of bfloat16 voxels in float32; with momentum 0 it leaves them.
    ignored = rows.new_zeros(rows.shape[2], dtype=dtype)
    slabs = rows.split(SLAB_ROWS, dim=1)
    parts = [torch.batch_norm_update_stats(one, ignored, ignored, 0.0) for slab in slabs for one in slab]
    shape = (len(slabs), len(rows), fold, -1)
    means, variances = (torch.stack(part).double().view(shape) for part in zip(*parts, strict=True))
    share = means.new_tensor([slab.shape[1] / (rows.shape[1] * fold) for slab in slabs]).view(-1, 1, 1, 1)
    mean = (means * share).sum((0, 2))
    variance = ((variances + (means - mean[:, None]).square()) * share).sum((0, 2))
    return mean.to(dtype), variance.to(dtype)


def _gradients_of_volumes(
    gradient: Tensor, volumes: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the volumes, and of weight and bias as (batch, channel)."""
    parts = [
        torch.ops.aten.native_batch_norm_backward(
            gradient[index : index + 1],
            volumes[index : index + 1],
            weight,
            None,
            None,
            mean[index],
            scale[index],
            True,
            0.0,  # already in `scale`
            [True, True, True],
        )
        for index in range(len(volumes))
    ]
    for_volumes, for_weight, for_bias = zip(*parts, strict=True)
    return torch.cat(for_volumes) if len(parts) > 1 else for_volumes[0], torch.stack(for_weight), torch.stack(for_bias)


def _gradients_of_rows(
    gradient: Tensor, volumes: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same from several voxels side by side, where channels are few.

    With x the normalised volumes and g the gradient, that of the volumes is weight * scale * (g - <g> - x <g x>), which
    is linear in g and in the volumes: two passes after the one for the sums.
    """
    fold, voxels = _fold(volumes), volumes[0, 0].numel()
    result = torch.empty_like(volumes)
    upstream, values, out = (_rows(tensor, fold) for tensor in (gradient, volumes, result))
    means, variances = mean.repeat(1, fold), scale.pow(-2).repeat(1, fold)
    ones, zeros = torch.ones_like(means), torch.zeros_like(means)
    sums = [
        torch.ops.aten.native_batch_norm_backward(*one, None, None, False, 0.0, [False, True, True])[1:]
        for one in zip(upstream, values, ones, means, variances, strict=True)
    ]
    for_weight, for_bias = (torch.stack(part).view(len(volumes), fold, -1).sum(1) for part in zip(*sums, strict=True))
    slope = weight * scale
    # Rounded first, so that the shift takes away just what the rounded one adds at the mean.
    correction = (-slope * scale * for_weight / voxels).to(volumes.dtype)
    shift = -slope * for_bias / voxels - correction.to(mean.dtype) * mean
    _batch_norm(upstream, slope.repeat(1, fold), shift.repeat(1, fold), (zeros, ones), 0.0, out)
    for target, one, factor in zip(out, values, correction.repeat(1, fold), strict=True):
        target.addcmul_(one, factor)
    return result, for_weight, for_bias
