"""Instance normalisation that stays in the channels-last layout.

torch's instance norm copies a channels-last volume into the default layout, normalises there and leaves the next
convolution to copy it back: of one 48-channel volume of 96 cubed that is 117 ms in bfloat16 and 210 ms in float32 on
two cores, as much as the convolution. Normalising one volume over its voxels is batch normalisation of a batch of one,
for which torch has a channels-last kernel: 13 and 30 ms, backward 23 instead of 206 ms. That kernel adds up all voxels
in one float32 number, which costs a float32 result its last four digits; so its statistics are taken over slabs that
fit the processor's cache and are then combined. Where channels are few, several voxels are put side by side: their rows
would leave the processor's vectors half empty (24 channels in bfloat16: half of the time). In the default layout group
norm with a group per channel is torch's fastest exact kernel (19 instead of 92 ms in float32).

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

SLAB_ROWS = 16384  # voxels summed in one float32 number: error 2e-6, and 48 channels of them (3 MiB) stay in the cache
FULL_ROW = 48  # values side by side below which the kernel handles them one by one


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
        statistics = []
        for volume, out in zip(volumes.split(1), result.split(1), strict=True):
            statistics.append(_normalise(volume, weight, bias, eps, out))
        ctx.save_for_backward(volumes, weight, *(part for pair in statistics for part in pair))
        ctx.eps = eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        volumes, weight, *statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                gradient[index : index + 1],
                volumes[index : index + 1],
                weight,
                None,
                None,
                statistics[2 * index],
                statistics[2 * index + 1],
                True,
                ctx.eps,
                [True, True, True],
            )
            for index in range(len(volumes))
        ]
        for_volumes = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])
        for_weight = torch.stack([part[1] for part in parts]).sum(0)
        for_bias = torch.stack([part[2] for part in parts]).sum(0)
        return for_volumes, for_weight, for_bias, None


def _normalise(volume: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the normalised volume into `out`; return the mean and the inverse standard deviation per channel."""
    fold = _fold(volume)
    half = volume.dtype in (torch.bfloat16, torch.float16)
    if fold == 1 and (half or volume[0, 0].numel() <= SLAB_ROWS):
        return _batch_norm(volume, weight, bias, None, eps, out)
    columns = fold * volume.shape[1]
    rows, target = (tensor.permute(0, 2, 3, 4, 1).view(-1, columns) for tensor in (volume, out))
    mean, variance = _moments(rows, fold, weight.dtype)
    _batch_norm(rows, weight.repeat(fold), bias.repeat(fold), (mean.repeat(fold), variance.repeat(fold)), eps, target)
    return mean, torch.rsqrt(variance + eps)


def _fold(volume: Tensor) -> int:
    """Return how many voxels are put side by side, so that a row fills the processor's vectors."""
    fold, voxels = 1, volume[0, 0].numel()
    while fold * volume.shape[1] < FULL_ROW and voxels % (2 * fold) == 0 and voxels > SLAB_ROWS:
        fold *= 2
    return fold


def _batch_norm(
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    eps: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    mean, scale = torch.empty_like(weight), torch.empty_like(weight)
    known = moments or (None, None)
    torch.ops.aten.native_batch_norm.out(
        values, weight, bias, *known, moments is None, 0.0, eps, out=out, save_mean=mean, save_invstd=scale
    )
    return mean, scale


def _moments(rows: Tensor, fold: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel of rows of `fold` voxels each, combined from slabs in float64."""
    columns = rows.shape[1]
    one, zero = rows.new_ones(columns, dtype=dtype), rows.new_zeros(columns, dtype=dtype)
    means, variances, shares = [], [], []
    for slab in rows.split(SLAB_ROWS // fold):
        _, mean, scale = torch.native_batch_norm(slab, one, zero, None, None, True, 0.0, 1e-12)
        means.append(mean.double().view(fold, -1))
        variances.append(scale.double().pow(-2).view(fold, -1))
        shares += [len(slab) / (len(rows) * fold)] * fold
    share = torch.tensor(shares, dtype=torch.float64)[:, None]
    mean = (torch.cat(means) * share).sum(0)
    variance = ((torch.cat(variances) + (torch.cat(means) - mean).square()) * share).sum(0)
    return mean.to(dtype), variance.to(dtype)
