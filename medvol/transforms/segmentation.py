"""The deterministic chain of a segmentation: image and mask on the working grid, in RAS order at the plan's spacing."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import Compose, EnsureChannelFirstd, Orientationd, Transform

from medvol.data.facts import Facts
from medvol.io.monai_readers import VolumeReader
from medvol.transforms.intensity import MeasureIntensityd, NormaliseIntensityd
from medvol.transforms.load import LoadVolumed
from medvol.transforms.masks import ClassIndexd, OntoImaged, PadToPatchd, RememberSitesd
from medvol.transforms.preprocess import KeepDtyped, RequireVolumed
from medvol.transforms.resample import StretchToSpacingd


def image_preprocessing(facts: Facts, *, key: str = "image") -> Compose:
    """Return load, orient to RAS, stretch to the spacing, normalise: from a reference to the working grid.

    Nothing is cropped or padded, so that the way back to the source grid is a stretch along each axis.

    Args:
        facts: What was planned on the training split.
        key: Item key of the reference and, afterwards, of the image: (channel, x, y, z), float32.
    """
    return Compose([*_image_steps(facts, key), MeasureIntensityd(key, facts), NormaliseIntensityd(key)])


def training_preprocessing(facts: Facts, *, patch_size: Sequence[int] | None, resample_labels: bool = False) -> Compose:
    """Return the same for `image`, and for `label`: the mask as class indices on the working grid, uint8.

    Args:
        facts: What was planned on the training split.
        patch_size: Volumes are padded to it and places of each class stored, as `ClassPatches` needs; None for
            validation, which sees whole volumes.
        resample_labels: Accept masks on another grid than their image.
    """
    image, mask = "image", "label"
    steps: list[Transform] = [
        *_image_steps(facts, image, stretched=False),
        LoadVolumed(keys=mask, reader=VolumeReader()),
        EnsureChannelFirstd(keys=mask),
        Orientationd(keys=mask, axcodes="RAS", labels=None),
        OntoImaged(mask, image, resample=resample_labels),
        ClassIndexd(mask, facts),
    ]
    if facts.spacing_mm is not None:
        steps += [
            KeepDtyped(image, StretchToSpacingd(image, facts.spacing_mm)),
            StretchToSpacingd(mask, facts.spacing_mm, nearest=True),
        ]
    steps.append(MeasureIntensityd(image, facts))
    if patch_size is not None:
        steps += [PadToPatchd(image, mask, patch_size), RememberSitesd(mask, len(facts.classes))]
    return Compose([*steps, NormaliseIntensityd(image)])


def _image_steps(facts: Facts, key: str, *, stretched: bool = True) -> list[Transform]:
    steps: list[Transform] = [
        LoadVolumed(keys=key, reader=VolumeReader()),
        EnsureChannelFirstd(keys=key),
        RequireVolumed(key, facts),
        Orientationd(keys=key, axcodes="RAS", labels=None),
    ]
    if stretched and facts.spacing_mm is not None:
        steps.append(KeepDtyped(key, StretchToSpacingd(key, facts.spacing_mm)))
    return steps
