"""The mean of blocks of two voxels along each axis, in the precision of its input.

torch's average pooling of volumes has no bfloat16 on a processor: autocast turns the input into float32 and back, which
there costs as much as a convolution of the same size. Sums of every second voxel take any type and any memory layout.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class MeanOfPairs(nn.Module):
    """Average pooling of size and stride 2.

    Shapes: (batch, channel, x, y, z) to the same with half the size. The values of `torch.nn.AvgPool3d(2)`, which it
    replaces without a change of the weights' names, having none.

    Args:
        round_up: Whether the last voxels of an odd axis, which have no neighbour, stay (torch's `ceil_mode`) or are
            left out.
    """

    def __init__(self, *, round_up: bool) -> None:
        super().__init__()
        self.round_up = round_up

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, in the type of the input."""
        for axis in (2, 3, 4):
            x = _sum_of_neighbours(x, axis, round_up=self.round_up)
        return x / 8


def _sum_of_neighbours(x: Tensor, axis: int, *, round_up: bool) -> Tensor:
    size = x.shape[axis]
    if size % 2 and round_up:
        x = torch.cat([x, x.narrow(axis, size - 1, 1)], dim=axis)
    elif size % 2:
        x = x.narrow(axis, 0, size - 1)
    first, second = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return first + second
