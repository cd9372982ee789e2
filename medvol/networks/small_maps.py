"""Convolutions of maps that are no longer than their kernel, computed in float32 where autocast says bfloat16.

oneDNN's weight gradient of such a convolution in bfloat16 is not safe (torch 2.13, a processor with AVX512-BF16): it
takes over memory that was never written, or writes past its end. The gradient is nan or garbage, or the process dies of
"double free or corruption". Found for kernels of 3, 5 and 7 voxels, strides 1 and 2, both layouts, plain and
transposed, where an axis of the map is as long as the kernel or shorter, as at the bottom of a U-Net (2 x 8 x 8). Not
found where the map is longer along every axis, nor in float32 with kernels of 3 and 5, nor in the forward pass. Small
maps cost little in either precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn


def use_exact_small_maps(network: nn.Module) -> nn.Module:
    """Let every convolution in `network` compute small maps in float32, in place, and return the network.

    Modules keep their identity, names, parameters and hooks: an optimiser or a wrapper made before stays valid.
    """
    for module in network.modules():
        exact = _EXACT.get(type(module))
        if exact is not None:
            module.__class__ = exact
    return network


def is_small(sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tell whether the kernel, where it is longer than one voxel, reaches over the whole map along some axis."""
    reaches = (step * (length - 1) + 1 for step, length in zip(dilation, kernel, strict=True))
    return any(size <= reach for size, reach in zip(sizes, reaches, strict=True) if reach > 1)


class _ExactSmallMaps(nn.Module):
    """What the classes below add to torch's: the choice of the precision."""

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Convolve maps of shape (n, channel, ...)."""
        # Only a processor has the fault; elsewhere autocast goes on.
        lowered = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not lowered or not is_small(input.shape[2:], self.kernel_size, self.dilation):
            return super().forward(input, *args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float(), *args, **kwargs)


@final
class ExactConv2d(_ExactSmallMaps, nn.Conv2d):
    """`torch.nn.Conv2d` with small maps in float32."""


@final
class ExactConv3d(_ExactSmallMaps, nn.Conv3d):
    """`torch.nn.Conv3d` with small maps in float32."""


@final
class ExactConvTranspose2d(_ExactSmallMaps, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with small maps in float32."""


@final
class ExactConvTranspose3d(_ExactSmallMaps, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with small maps in float32."""


_EXACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: ExactConv2d,
    nn.Conv3d: ExactConv3d,
    nn.ConvTranspose2d: ExactConvTranspose2d,
    nn.ConvTranspose3d: ExactConvTranspose3d,
}
