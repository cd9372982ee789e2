"""The deterministic chain from an image file to the network's input; the same for training, evaluation and inference.

Images are resized to rows and columns without regard to their shape, as Keras' and torchvision's examples do. The
filter is triangular and widens as an image shrinks (antialiasing), as Pillow's and torchvision's: published weights
have seen images of this kind. MONAI's `Resized` blurs with a Gaussian first, which is another picture.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Transform
from torch import Tensor

from medvol.data.facts import Facts
from medvol.data.image_facts import COLOURS, FIXED_RANGES, GREY, NORMALISATIONS, is_grey, two_of
from medvol.data.loading import without_metadata
from medvol.data.sampling import thinned
from medvol.errors import MedvolError
from medvol.io.images import read_image
from medvol.io.monai_readers import VolumeReader
from medvol.transforms.intensity import CLIP_PERCENT, QUANTILE_VOXELS, RANGE_SLACK, NormaliseIntensityd
from medvol.transforms.load import LoadVolumed
from medvol.transforms.preprocess import KeepDtyped

SMALLEST_SIDE = 8  # pixels; below, an image is a marker or a mistake rather than a picture


def image_preprocessing(facts: Facts, *, key: str = "image") -> Compose:
    """Return load, check, resize, normalise.

    Args:
        facts: Of `medvol.data.image_facts.fit_image_facts`.
        key: Item key of the reference and, afterwards, of the image: (channel, row, column), float32.
    """
    return Compose(
        [
            LoadVolumed(keys=key, reader=VolumeReader(read=read_image)),
            EnsureChannelFirstd(keys=key),
            RequireImaged(key, facts),
            KeepDtyped(key, ResizeImaged(key, facts.spatial_size)),
            MeasureImaged(key, facts),
            NormaliseIntensityd(key),
        ]
    )


def mirror_axes(facts: Facts) -> tuple[int, ...]:
    """Return the axes along which an image may be mirrored: left and right, where the study says so; never top down."""
    return () if facts.laterality_matters else (1,)


@final
class RequireImaged(Transform):
    """Bring an image to the channels that are stored for the network, or refuse it.

    A network for colours takes a grey image as it is: `MeasureImaged` makes it three channels. A network for grey
    images takes a coloured file whose three channels are equal; a picture with colours is refused, since nobody knows
    what its colours mean in grey.

    Raises:
        MedvolError: `IMAGE_TOO_SMALL` or `WRONG_CHANNELS`.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.channels = facts.channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with an image of 1 channel, or as many as the network takes."""
        image, case = data[self.key], str(data.get("case", ""))
        if min(image.shape[1:]) < SMALLEST_SIDE:
            raise MedvolError(
                "IMAGE_TOO_SMALL",
                case=case,
                found=f"an image of {image.shape[1]} x {image.shape[2]} pixels",
                expected=f"at least {SMALLEST_SIDE} along both sides",
                fix="check the file, or leave it out",
            )
        count = len(image)
        if count == len(self.channels) or (count == 1 and self.channels == COLOURS):
            return dict(data)
        if count == 3 and self.channels == GREY and is_grey(without_metadata(image).numpy().transpose(1, 2, 0)):
            return {**data, self.key: image[1:2]}
        raise MedvolError(
            "WRONG_CHANNELS",
            case=case,
            found="a coloured image" if count == 3 else f"{count} channels",
            expected=f"{len(self.channels)}: {', '.join(self.channels)}",
            fix="save it as grey, or train with --in_channels 3" if count == 3 else "name one image per channel",
        )


@final
class ResizeImaged(Transform):
    """Resize to rows and columns with a triangular filter, antialiased; an equal size is left alone."""

    def __init__(self, key: Hashable, spatial_size: tuple[int, ...]) -> None:
        self.key = key
        self.spatial_size = two_of(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with an image of the spatial size; an image without a geometry has no affine to move."""
        image = data[self.key]
        if tuple(image.shape[1:]) == self.spatial_size:
            return dict(data)
        resized = F.interpolate(without_metadata(image)[None], self.spatial_size, mode="bilinear", antialias=True)[0]
        return {**data, self.key: MetaTensor(resized, meta=image.meta) if isinstance(image, MetaTensor) else resized}


@final
class MeasureImaged(Transform):
    """Store low, high, centre and scale of each of the network's channels under `intensity`.

    `medvol.transforms.intensity.normalise` applies them after the cache; a grey image becomes three channels there,
    since its one channel meets the limits of three.

    Args:
        key: Image of shape (channel, row, column).
        facts: Says which grey values become 0 and 1, and the mean and deviation that follow.

    Raises:
        MedvolError: `INTENSITY_RANGE` when a study of 8-bit or 0..1 images meets one of another range.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.limits = facts.limits
        self.count = facts.in_channels
        self.is_colour = facts.channels == COLOURS
        self.normalisation = facts.intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with `intensity`, shape (channels of the network, 4)."""
        image = without_metadata(data[self.key])
        if self.limits is None:
            # Of colours in common: percentiles of each would change the hue.
            low, high = torch.stack([percentiles(one) for one in ([image] if self.is_colour else image)]).T
        else:
            if self.limits in FIXED_RANGES:
                self._require_range(data, image, *self.limits)
            low, high = torch.tensor(self.limits)[:, None]
        mean, deviation = (torch.tensor(one) for one in NORMALISATIONS[self.normalisation])
        span = torch.where(high > low, high - low, 1.0)
        columns = (low, high, low + mean * span, deviation * span)
        limits = torch.stack([column.expand(self.count) for column in columns], dim=1)
        return {**data, "intensity": limits}

    def _require_range(self, item: Mapping[Hashable, Any], image: Tensor, low: float, high: float) -> None:
        lowest, highest = float(image.min()), float(image.max())
        slack = RANGE_SLACK * (high - low)
        # Fractions among 8-bit images would all look black.
        is_fraction = high > 1 and image.is_floating_point() and 0 < highest <= 1
        if lowest < low - slack or highest > high + slack or is_fraction:
            raise MedvolError(
                "INTENSITY_RANGE",
                case=str(item.get("case", "")),
                found=f"grey values {lowest:g} to {highest:g}",
                expected=f"{low:g} to {high:g} as in training",
                fix="rescale the image, or train with --grey_range percentile",
            )


def percentiles(image: Tensor) -> Tensor:
    """Return the 0.5th and 99.5th percentile of an image, float32 (2,); minimum and maximum where they are equal."""
    values = thinned(image.reshape(-1), QUANTILE_VOXELS).float()
    low, high = torch.quantile(values, torch.tensor(CLIP_PERCENT) / 100)
    return torch.stack([low, high]) if high > low else torch.stack(values.aminmax())
