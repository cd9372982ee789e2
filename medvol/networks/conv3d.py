"""The plain 3D convolutional network of the Keras 3D classification example.

Conv3D 32, max pooling, Conv3D 64, max pooling, flatten, dense 128, output; kernels of 3, no padding, ReLU. Its dense
layer is sized by the data: 22,535,361 parameters at 64 cubed with one channel and one output.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from medvol.networks.sizes import require_size

SMALLEST = 10
"""A convolution takes 2 voxels, a pooling halves rounding down: (10 - 2) / 2 = 4, (4 - 2) / 2 = 1."""


def conv3d(in_channels: int, num_outputs: int, *, spatial_size: Sequence[int], dropout: float = 0.0) -> nn.Module:
    """Return the plain network, (batch, in_channels, *spatial_size) to (batch, num_outputs).

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume; the example uses one with a sigmoid.
        spatial_size: Voxels along each axis; every volume must have exactly this size.
        dropout: Probability before the output; the example uses none.

    Raises:
        MedvolError: `INPUT_TOO_SMALL`.
    """
    require_size("conv3d", spatial_size, SMALLEST)
    flat = 64 * math.prod(((size - 2) // 2 - 2) // 2 for size in spatial_size)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv3d(in_channels, 32, kernel_size=3),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool3d(2),
            conv2=nn.Conv3d(32, 64, kernel_size=3),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool3d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(flat, 128),
            relu3=nn.ReLU(inplace=True),
            dropout=nn.Dropout(dropout),
            output=nn.Linear(128, num_outputs),
        )
    )
