"""The plain 2D convolutional network of the Keras 2D classification example.

Conv2D 32, max pooling, Conv2D 64, max pooling, Conv2D 64, flatten, dense 64, output; kernels of 3, no padding, ReLU.
Its dense layer is sized by the data: 646,273 parameters at 64 x 64 with three channels and one output. The sigmoid or
softmax belongs to the loss.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from medvol.errors import MedvolError

SMALLEST = 18
"""A convolution takes 2 pixels, a pooling halves rounding down: (18 - 2) / 2 = 8, (8 - 2) / 2 = 3, 3 - 2 = 1."""


def cnn2d(in_channels: int, num_outputs: int, *, spatial_size: Sequence[int], dropout: float = 0.0) -> nn.Module:
    """Return the plain network, (batch, in_channels, *spatial_size) to (batch, num_outputs) logits.

    Args:
        in_channels: Channels of the images, 1 for grey and 3 for colour.
        num_outputs: Logits per image; the example uses one with a sigmoid.
        spatial_size: Pixels along each axis; every image must have exactly this size.
        dropout: Probability before the output; the example uses none.

    Raises:
        MedvolError: `INPUT_TOO_SMALL`.
    """
    if min(spatial_size) < SMALLEST:
        raise MedvolError(
            "INPUT_TOO_SMALL",
            found=f"cnn2d was given images of {' x '.join(map(str, spatial_size))} pixels",
            expected=f"at least {SMALLEST} along every axis",
            fix="pass --spatial_size '[64, 64]' or use resnet50_2d",
        )
    flat = 64 * math.prod(((size - 2) // 2 - 2) // 2 - 2 for size in spatial_size)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, kernel_size=3),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, kernel_size=3),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(64, 64, kernel_size=3),
            relu3=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            dense=nn.Linear(flat, 64),
            relu4=nn.ReLU(inplace=True),
            dropout=nn.Dropout(dropout),
            output=nn.Linear(64, num_outputs),
        )
    )
