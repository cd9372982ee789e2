"""A transposed convolution and the convolution over its result, computed as one.

The last decoder of a Swin UNETR doubles the size of a volume with a transposed convolution (kernel 2, stride 2), puts
the encoder's features beside it and convolves both (kernel 3). Each result voxel sees 27 doubled voxels, but these stem
from only 8 voxels of the small volume: a kernel of 2 on the small grid, one for each of the 8 positions within a
doubled voxel, gives the same sum with 3.4 times fewer multiplications, and neither the doubled volume nor its
concatenation is ever written. At 96 cubed and 48 channels this is a ninth of all of the network's arithmetic.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medvol.networks.exporting import is_exporting


@final
class FastUpBlock(nn.Module):
    """MONAI's `UnetrUpBlock` with a residual block and no bias, its parameters by its names.

    Args:
        stock: Module whose parts are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.transp_conv: Any = stock.transp_conv
        self.conv_block: Any = stock.conv_block

    def forward(self, small: Tensor, skip: Tensor) -> Tensor:
        """Return (batch, channel, 2x, 2y, 2z) of a small volume and the encoder's features at twice its size."""
        block, up = self.conv_block, self.transp_conv.conv.weight
        channels = up.shape[1]
        first, shortcut = block.conv1.conv.weight, block.conv3.conv.weight
        out = functional.conv3d(skip, first[:, channels:], padding=1)
        out += spread_children(functional.conv3d(small, merged_kernel(up, first[:, :channels]), padding=1), overlap=1)
        residual = functional.conv3d(skip, shortcut[:, channels:])
        residual += spread_children(functional.conv3d(small, merged_pointwise(up, shortcut[:, :channels])))
        out = block.conv2(block.lrelu(block.norm1(out)))
        out = block.norm2(out)
        out += block.norm3(residual)
        result: Tensor = block.lrelu(out)
        return result


def merged_kernel(up: Tensor, kernel: Tensor) -> Tensor:
    """Return the kernel on the small grid that equals a convolution after a transposed convolution.

    A doubled voxel 2c + p needs 2c + p + t for t = -1, 0, 1: it is child q of small voxel c + p - 1 + j, where
    p + t = 2 (p - 1 + j) + q.

    Args:
        up: Weight of the transposed convolution, (small channel, channel, 2, 2, 2).
        kernel: Weight of the convolution, (result channel, channel, 3, 3, 3).

    Returns:
        (8 * result channel, small channel, 2, 2, 2): position p within the doubled voxel first, x slowest.
    """
    with _without_autocast(up.device.type):
        exact = torch.promote_types(up.dtype, torch.float32)
        chosen = torch.zeros(2, 2, 3, 2, dtype=exact, device=up.device)  # p, j, t + 1, q
        for p in range(2):
            for t in (-1, 0, 1):
                chosen[p, (p + t) // 2 - p + 1, t + 1, (p + t) % 2] = 1
        spread = torch.einsum("omxyz,pjxa,qkyb,rlzc->pqrojklmabc", kernel.to(exact), chosen, chosen, chosen)
        merged = torch.einsum("pqrojklmabc,imabc->pqroijkl", spread, up.to(exact))
        return merged.flatten(0, 3).to(up.dtype)


def merged_pointwise(up: Tensor, kernel: Tensor) -> Tensor:
    """Return the kernel on the small grid that equals a convolution of kernel 1 after a transposed convolution.

    Args:
        up: Weight of the transposed convolution, (small channel, channel, 2, 2, 2).
        kernel: Weight of the convolution, (result channel, channel, 1, 1, 1).

    Returns:
        (8 * result channel, small channel, 1, 1, 1): position within the doubled voxel first, x slowest.
    """
    with _without_autocast(up.device.type):
        merged = torch.einsum("impqr,om->pqroi", up, kernel.flatten(1))
        return merged.reshape(-1, len(up), 1, 1, 1)


def spread_children(parts: Tensor, overlap: int = 0) -> Tensor:
    """Return the doubled grid whose voxels have the channels that were computed for them on the small grid.

    Args:
        parts: (batch, 8 * channel, x + overlap, y + overlap, z + overlap), position within the doubled voxel first.
        overlap: 1 for the longer grid of a kernel of 2 with padding 1, whose point g has seen the small voxels g - 1
            and g: position p of the doubled voxel takes it at g = c + p.

    Returns:
        (batch, channel, 2x, 2y, 2z), channels last.
    """
    if is_exporting() and not torch.is_grad_enabled():
        return _spread_plainly(parts, overlap)
    result: Tensor = _Spread.apply(parts, overlap)
    return result


def _spread_plainly(parts: Tensor, overlap: int) -> Tensor:
    """Return what `_Spread` does, from operators that every exporter knows."""
    size = [length - overlap for length in parts.shape[2:]]
    children = []
    for part, (p, q, r) in zip(parts.chunk(8, dim=1), product(range(2), repeat=3), strict=True):
        i, j, k = p * overlap, q * overlap, r * overlap
        children.append(part[:, :, i : i + size[0], j : j + size[1], k : k + size[2]])
    grid = torch.stack(children, dim=2).unflatten(2, (2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return grid.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class _Spread(torch.autograd.Function):
    """Doubled voxel 2c + p takes the channels of position p at grid point c, or c + p of the longer grid."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, overlap: int) -> Tensor:
        ctx.overlap, ctx.shape = overlap, parts.shape
        parts = parts.permute(0, 2, 3, 4, 1).contiguous()
        size = [2 * (length - overlap) for length in parts.shape[1:4]]
        large = parts.new_empty(len(parts), *size, parts.shape[-1] // 8)
        for child, part in _pairs(large, parts, overlap):
            child.copy_(part)
        return large.permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.permute(0, 2, 3, 4, 1).contiguous()
        batch, channels, *size = ctx.shape
        for_parts = gradient.new_zeros(batch, *size, channels)
        for child, part in _pairs(gradient, for_parts, ctx.overlap):
            part.copy_(child)
        return for_parts.permute(0, 4, 1, 2, 3), None


def _pairs(large: Tensor, parts: Tensor, overlap: int) -> list[tuple[Tensor, Tensor]]:
    """Return views of the doubled voxels at each position and of the small grid's channels for them."""
    channels = large.shape[-1]
    if channels * large.element_size() % 8 == 0:  # short rows of 2-byte numbers are copied one by one: 4 at once
        large, parts, channels = large.view(torch.int64), parts.view(torch.int64), channels * large.element_size() // 8
    x, y, z = (length // 2 for length in large.shape[1:4])
    pairs = []
    for number, (p, q, r) in enumerate(product(range(2), repeat=3)):
        i, j, k = p * overlap, q * overlap, r * overlap
        own = parts[:, i : i + x, j : j + y, k : k + z, number * channels : (number + 1) * channels]
        pairs.append((large[:, p::2, q::2, r::2], own))
    return pairs


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; the planner counts memory on the meta device, which knows none."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
