"""The deterministic chain of a segmentation: image and mask on the working grid, in RAS order at the plan's spacing."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import Compose, CopyItemsd, EnsureChannelFirstd, Orientationd, Transform

from medvol.data.facts import Facts
from medvol.transforms.intensity import MeasureIntensityd, NormaliseIntensityd
from medvol.transforms.load import LoadVolumed, reader_for
from medvol.transforms.masks import ClassIndexd, LoadMaskd, OntoImaged, PadToPatchd, RememberSitesd
from medvol.transforms.preprocess import KeepDtyped, RequireVolumed
from medvol.transforms.resample import StretchToSpacingd

IMAGE, MASK = "image", "label"


def image_preprocessing(facts: Facts, *, key: str = "image") -> Compose:
    """Return load, orient to RAS, stretch to the spacing, normalise: from a reference to the working grid.

    Nothing is cropped or padded, so that the way back to the source grid is a stretch along each axis.

    Args:
        facts: What was planned on the training split.
        key: Item key of the reference and, afterwards, of the image: (channel, x, y, z), float32.
    """
    steps: list[Transform] = _image_steps(facts, key)
    if facts.spacing_mm is not None:
        steps.append(KeepDtyped(key, StretchToSpacingd(key, facts.spacing_mm)))
    return Compose([*steps, MeasureIntensityd(key, facts), NormaliseIntensityd(key)])


def training_preprocessing(facts: Facts, *, patch_size: Sequence[int], resample_labels: bool = False) -> Compose:
    """Return the same for `image`, and for `label`: the mask as class indices on the working grid, uint8.

    Volumes are padded to the patch, and places of each class stored, as `ClassPatches` needs.

    Args:
        facts: What was planned on the training split.
        patch_size: Voxels of a patch along x, y, z.
        resample_labels: Accept masks on another grid than their image.
    """
    steps: list[Transform] = _image_and_mask(facts, resample_labels)
    if facts.spacing_mm is not None:
        steps += [
            KeepDtyped(IMAGE, StretchToSpacingd(IMAGE, facts.spacing_mm)),
            StretchToSpacingd(MASK, facts.spacing_mm, nearest=True),
        ]
    return Compose(
        [
            *steps,
            MeasureIntensityd(IMAGE, facts),
            PadToPatchd(IMAGE, MASK, patch_size),
            RememberSitesd(MASK, len(facts.classes)),
            NormaliseIntensityd(IMAGE),
        ]
    )


def evaluation_preprocessing(facts: Facts, *, resample_labels: bool = False) -> Compose:
    """Return the chain of a labelled case that is predicted as in inference and scored on its source grid.

    `image` is on the working grid; `label`, class indices, and `shown`, the image for pictures, stay on the source's
    grid in RAS order.

    Args:
        facts: What was planned on the training split.
        resample_labels: Accept masks on another grid than their image.
    """
    steps = [*_image_and_mask(facts, resample_labels), CopyItemsd(keys=IMAGE, names="shown")]
    if facts.spacing_mm is not None:
        steps.append(KeepDtyped(IMAGE, StretchToSpacingd(IMAGE, facts.spacing_mm)))
    return Compose([*steps, MeasureIntensityd(IMAGE, facts), NormaliseIntensityd(IMAGE)])


def _image_and_mask(facts: Facts, resample_labels: bool) -> list[Transform]:
    """Return the steps to an image and its mask on the source grid in RAS order."""
    return [
        *_image_steps(facts, IMAGE),
        LoadMaskd(MASK, IMAGE, facts, resample=resample_labels),
        EnsureChannelFirstd(keys=MASK),
        Orientationd(keys=MASK, axcodes="RAS", labels=None),
        OntoImaged(MASK, IMAGE, resample=resample_labels),
        ClassIndexd(MASK, facts),
    ]


def _image_steps(facts: Facts, key: str) -> list[Transform]:
    """Return the steps to an image on the source grid in RAS order."""
    return [
        LoadVolumed(keys=key, reader=reader_for(facts.channels)),
        EnsureChannelFirstd(keys=key),
        RequireVolumed(key, facts),
        Orientationd(keys=key, axcodes="RAS", labels=None),
    ]
