"""The deterministic chain from a file to the network's input; the same for training, evaluation and inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Orientationd,
    Resized,
    ResizeWithPadOrCrop,
    Spacingd,
    Transform,
)

from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.transforms.intensity import MeasureIntensityd, NormaliseIntensityd
from medvol.transforms.load import LoadVolumed, reader_for

FEWEST_GREY_LEVELS = 100  # below that, rounding an interpolated value back to an integer would lose information


def volume_preprocessing(facts: Facts, *, key: str = "image") -> Compose:
    """Return load, orient to RAS, resample, fit to size, normalise.

    Volumes without a geometry are resized instead of resampled. Everything before the normalisation is deterministic
    and narrow, and is what the volume cache keeps.

    Args:
        facts: What was fitted on the training split.
        key: Item key of the reference and, afterwards, of the image: (channel, x, y, z), float32.
    """
    load: list[Transform] = [
        LoadVolumed(keys=key, reader=reader_for(facts.channels)),
        EnsureChannelFirstd(keys=key),
        RequireVolumed(key, facts),
    ]
    if facts.spacing_mm is not None:
        grid: Sequence[Transform] = (
            Orientationd(keys=key, axcodes="RAS", labels=None),
            KeepDtyped(key, Spacingd(keys=key, pixdim=facts.spacing_mm, mode="bilinear", padding_mode="border")),
            FitSized(key, facts.spatial_size),
        )
    else:
        grid = (KeepDtyped(key, Resized(keys=key, spatial_size=facts.spatial_size, mode="trilinear")),)
    return Compose([*load, *grid, MeasureIntensityd(key, facts), NormaliseIntensityd(key)])


@final
class RequireVolumed(Transform):
    """Refuse a volume that is not of the kind the model was trained on.

    Raises:
        MedvolError: `WRONG_DIMS`, `WRONG_CHANNELS` or `NO_GEOMETRY`.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.channels = facts.channels
        self.has_geometry = facts.has_geometry

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item unchanged."""
        image, case = data[self.key], str(data.get("case", ""))
        if image.dim() != 4:
            raise MedvolError(
                "WRONG_DIMS",
                case=case,
                found=f"an image with axes {tuple(image.shape)} (channel first)",
                expected="a volume with three spatial axes",
                fix="use a 2D bundle for images",
            )
        if len(image) != len(self.channels):
            raise MedvolError(
                "WRONG_CHANNELS",
                case=case,
                found=f"{len(image)} channels",
                expected=f"{len(self.channels)}: {', '.join(self.channels)}",
                fix="name one image column per channel",
            )
        if self.has_geometry and not image.meta.get("has_geometry", True):
            raise MedvolError(
                "NO_GEOMETRY",
                case=case,
                found="a volume without spacing",
                expected="a format with an affine, as in training",
                fix="convert it to NIfTI with its spacing",
            )
        return dict(data)


@final
class KeepDtyped(Transform):
    """Apply an interpolating transform and round back to the integer type that went in.

    The error is at most half a grey level and the same in training and inference; an eighth to a half of the disk and
    memory is what it saves. Images of few grey levels (masks) and floating point images stay float32.
    """

    def __init__(self, key: Hashable, transform: Transform) -> None:
        self.key = key
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the transformed item, the image in its source's integer type where that loses nothing."""
        image = data[self.key]
        dtype = image.dtype
        # Alone: MONAI's Spacingd takes another key that starts with the image's, MONAI Label's `image_path`, for meta.
        item = {**data, **self.transform({self.key: image.float()})}
        if not dtype.is_floating_point and float(image.max()) - float(image.min()) >= FEWEST_GREY_LEVELS:
            limits = torch.iinfo(dtype)
            item[self.key] = item[self.key].round().clamp(limits.min, limits.max).to(dtype)
        return item


@final
class FitSized(Transform):
    """Crop or pad around the centre; padding takes the volume's own minimum, which is air in CT and dark in MR."""

    def __init__(self, key: Hashable, spatial_size: Sequence[int]) -> None:
        self.key = key
        self.spatial_size = tuple(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with an image of exactly the spatial size, its affine moved along."""
        image = data[self.key]
        if tuple(image.shape[1:]) == self.spatial_size:
            return dict(data)
        fit = ResizeWithPadOrCrop(self.spatial_size, mode="constant", value=np.float64(image.min()).item())
        return {**data, self.key: fit(image)}
