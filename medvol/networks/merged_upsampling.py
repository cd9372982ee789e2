"""A transposed convolution and the convolution over its result, computed as one.

The last decoder of a Swin UNETR doubles the size of a volume with a transposed convolution (kernel 2, stride 2), puts
the encoder's features beside it and convolves both (kernel 3). Each result voxel sees 27 doubled voxels, but these stem
from only 8 voxels of the small volume: a kernel of 2 on the small grid, one for each of the 8 positions within a
doubled voxel, gives the same sum with 3.4 times fewer multiplications, and neither the doubled volume nor its
concatenation is ever written. At 96 cubed and 48 channels this is a ninth of all of the network's arithmetic.
"""

from __future__ import annotations

from itertools import product
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


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
        out = add_children(out, functional.conv3d(small, merged_kernel(up, first[:, :channels]), padding=1))
        residual = functional.conv3d(skip, shortcut[:, channels:])
        residual = add_children(residual, functional.conv3d(small, merged_pointwise(up, shortcut[:, :channels])))
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
    with torch.autocast(up.device.type, enabled=False):
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
    with torch.autocast(up.device.type, enabled=False):
        merged = torch.einsum("impqr,om->pqroi", up, kernel.flatten(1))
        return merged.reshape(-1, len(up), 1, 1, 1)


def add_children(large: Tensor, parts: Tensor) -> Tensor:
    """Add to every voxel of a doubled grid the channels computed for it on the small grid, in place; return `large`.

    Args:
        large: (batch, channel, 2x, 2y, 2z).
        parts: (batch, 8 * channel, x, y, z); or one longer along each axis, where grid point g belongs to the voxels
            2g - 2 + p for which it saw the small voxels g - 1 and g, as a kernel of 2 with padding 1 does.
    """
    result: Tensor = _AddChildren.apply(large, parts)
    return result


class _AddChildren(torch.autograd.Function):
    """Add to every doubled voxel 2c + p the channels of position p at grid point c, or c + p of the longer grid."""

    @staticmethod
    def forward(ctx: Any, large: Tensor, parts: Tensor) -> Tensor:
        ctx.mark_dirty(large)
        ctx.parts = parts.shape
        for child, part in zip(_children(large), _positions(parts, large), strict=True):
            child.add_(part)
        return large

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        for_parts = gradient.new_zeros(ctx.parts).contiguous(memory_format=torch.channels_last_3d)
        for child, part in zip(_children(gradient), _positions(for_parts, gradient), strict=True):
            part.copy_(child)
        return gradient, for_parts


def _children(large: Tensor) -> list[Tensor]:
    return [large[:, :, p::2, q::2, r::2] for p, q, r in product(range(2), repeat=3)]


def _positions(parts: Tensor, large: Tensor) -> list[Tensor]:
    x, y, z = (length // 2 for length in large.shape[2:])
    further = parts.shape[2] - x  # 1 on the longer grid
    places = [[further * step for step in place] for place in product(range(2), repeat=3)]
    return [
        part[:, :, p : p + x, q : q + y, r : r + z] for part, (p, q, r) in zip(parts.chunk(8, 1), places, strict=True)
    ]
