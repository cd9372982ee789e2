"""Grey values to what a network likes, in two steps: measure limits on the volume, then apply them.

Every scheme is the same formula, `(clip(image, low, high) - centre) / scale`; they differ in where the four numbers
come from. Measuring is done once and cached with the volume, whose voxels stay integers until the limits are applied.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, final

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from medvol.data.cache_chain import AfterCache
from medvol.data.facts import Facts
from medvol.data.loading import without_metadata
from medvol.data.sampling import thinned
from medvol.errors import MedvolError

CLIP_PERCENT = (0.5, 99.5)  # nnU-Net's percentiles; beyond them lie vessels, metal and motion
NORMAL_IQR = 1.349  # interquartile range of a normal distribution with standard deviation 1
RANGE_SLACK = 0.01  # fraction of the range that resampling may overshoot
QUANTILE_VOXELS = 2**20  # sampling keeps quantiles of larger volumes cheap; torch.quantile refuses more than 2**24


def fixed_limits(low: float, high: float) -> Tensor:
    """Return the limits that map [low, high] to [0, 1]: a HU window, or 0..255 of 8-bit images."""
    return torch.tensor([low, high, low, high - low], dtype=torch.float32)


def robust_limits(image: Tensor) -> Tensor:
    """Return the limits of a robust z-score of one channel, measured above the background.

    Background is whatever equals the minimum, as it does around a skull-stripped or padded brain. Centre is the median,
    scale the interquartile range divided by 1.349, clipping at the 0.5th and 99.5th percentile. A constant image has
    scale 1.
    """
    values = thinned(image.reshape(-1), QUANTILE_VOXELS).float()
    foreground = values[values > values.min()]
    if len(foreground) == 0:
        level = float(values[0])
        return torch.tensor([level, level, level, 1.0])
    percent = torch.tensor([CLIP_PERCENT[0], 25.0, 50.0, 75.0, CLIP_PERCENT[1]]) / 100
    low, first, middle, third, high = torch.quantile(foreground, percent).tolist()
    scale = (third - first) / NORMAL_IQR or (high - low) or 1.0
    return torch.tensor([low, high, middle, scale])


def normalise(image: Tensor, limits: Tensor) -> Tensor:
    """Return `(clip(image, low, high) - centre) / scale` as float32.

    Args:
        image: Shape (channel, x, y, z).
        limits: Low, high, centre and scale of each channel, (channel, 4).
    """
    low, high, centre, scale = limits.T.reshape(4, -1, *[1] * (image.dim() - 1))
    return (image.float().clamp(low, high) - centre) / scale


@final
class MeasureIntensityd(Transform):
    """Store the limits of each channel under `intensity`; the last step of the cached chain.

    Args:
        key: Image of shape (channel, x, y, z).
        facts: Says the scheme and, for `scaled` and `ct`, the limits.

    Raises:
        MedvolError: `INTENSITY_RANGE` when a `scaled` study meets a volume far outside the range it was trained on.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.scheme = facts.intensity
        self.limits = facts.limits

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with `intensity`, shape (channel, 4)."""
        item = dict(data)
        image = without_metadata(item[self.key])
        if self.limits is None:
            item["intensity"] = torch.stack([robust_limits(channel) for channel in image])
            return item
        low, high = self.limits
        if self.scheme == "scaled":
            self._require_range(item, image, low, high)
        item["intensity"] = fixed_limits(low, high).repeat(len(image), 1)
        return item

    def _require_range(self, item: Mapping[Hashable, Any], image: Tensor, low: float, high: float) -> None:
        slack = RANGE_SLACK * (high - low)
        lowest, highest = float(image.min()), float(image.max())
        if lowest < low - slack or highest > high + slack:
            raise MedvolError(
                "INTENSITY_RANGE",
                case=str(item.get("case", "")),
                found=f"grey values {lowest:g} to {highest:g}",
                expected=f"{low:g} to {high:g} as in training",
                fix="rescale the volume, or train with --intensity mr (or ct)",
            )


@final
class NormaliseIntensityd(Transform, AfterCache):
    """Apply and drop the measured limits. Runs after the cache, so that cached voxels stay narrow integers."""

    def __init__(self, key: Hashable) -> None:
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with a float32 image and without `intensity`."""
        item = dict(data)
        image, limits = item[self.key], item.pop("intensity")
        result = normalise(without_metadata(image), without_metadata(limits))
        item[self.key] = MetaTensor(result, meta=image.meta) if isinstance(image, MetaTensor) else result
        if isinstance(image, MetaTensor):
            item[self.key].applied_operations = image.applied_operations
        return item
