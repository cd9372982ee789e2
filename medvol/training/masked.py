"""The loss of masked-volume modelling, and the batch in which a volume is its own target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from ignite.metrics import Loss
from torch import Tensor, nn


@final
class MaskedError(nn.Module):
    """Mean squared error over the hidden voxels alone.

    What is visible could be copied; a loss on it teaches nothing and blunts the rest (He et al., CVPR 2022, sec. 3).
    """

    def forward(self, outputs: Tensor, volumes: Tensor) -> Tensor:
        """Return the mean over hidden voxels and channels, in squared units of the normalised grey values.

        Args:
            outputs: Of a masked network, (n, channel + 1, x, y, z): prediction, and 1 where a voxel was hidden.
            volumes: What was to be predicted, (n, channel, x, y, z).
        """
        hidden = outputs[:, -1:]
        squared = (outputs[:, :-1] - volumes).square() * hidden
        return squared.sum() / (hidden.sum() * volumes.shape[1])


def image_as_target(
    batchdata: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the images of a batch twice, as input and as target; a `prepare_batch` of MONAI's engines."""
    image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
    return image, image


def validation_error() -> Loss:
    """Return the ignite metric of the same loss over an evaluator's batches."""
    return Loss(MaskedError(), output_transform=lambda output: (output["pred"], output["label"]))
