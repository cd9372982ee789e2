"""What a network for images must know of its study, as `Facts` with a spatial size of rows and columns.

`intensity` names how grey values within 0..1 are shifted and scaled, `limits` which values become 0 and 1:

| limits | chosen for | meaning |
|---|---|---|
| 0, 255 | 8-bit images | the same for every image |
| 0, 1 | floating point within 0..1 | the same for every image |
| two numbers | `grey_range` says so, as a HU window | the same for every image, values outside are clipped |
| None | anything else: 16 bits, MATLAB, DICOM; or `grey_range` is `percentile` | each image's own percentiles |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.facts import Facts, Sampled, spread, training_cases
from medvol.data.study import Study
from medvol.errors import MedvolError, require_choice
from medvol.geometry import Volume
from medvol.io.images import read_image

NORMALISATIONS = {
    "zero_one": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation, of red, green and blue within 0..1. torchvision's weights and DeiT's are trained with ImageNet's
(torchvision, `transforms/_presets.py`); timm's own `vit_base_patch16_224` and `vit_tiny_patch16_224` with a half,
though they saw ImageNet (Steiner et al., "How to train your ViT?", 2021; timm's `default_cfgs`)."""

GREY = ("grey",)
COLOURS = ("red", "green", "blue")
FIXED_RANGES = ((0.0, 255.0), (0.0, 1.0))
GREY_TOLERANCE = 2  # 8-bit levels between the colours of a grey image that JPEG stored as colour


def fit_image_facts(
    study: Study,
    *,
    spatial_size: Sequence[int] | int,
    in_channels: int | str = "auto",
    normalisation: str = "zero_one",
    grey_range: Sequence[float] | str = "auto",
    laterality_matters: bool | None = None,
) -> Facts:
    """Read the facts off up to 48 training images; whatever is given is taken as it is.

    Args:
        study: Images; several image columns of a case, each grey, become channels of their own.
        spatial_size: Rows and columns that images are resized to, whatever their shape; one number for a square.
        in_channels: 3 to repeat grey images; 1 to refuse coloured ones. `auto`: 3 when a training image is coloured or
            the normalisation is that of published weights.
        normalisation: One of `NORMALISATIONS`.
        grey_range: `auto`, `percentile`, or the two values that become 0 and 1.
        laterality_matters: Whether mirroring left and right could change the label; None for what the study says.

    Raises:
        MedvolError: `NO_TRAINING_CASES`, `UNKNOWN_OPTION`, `WRONG_DIMS`, `WRONG_CHANNELS`, or what reading finds.
    """
    require_choice("normalisation", normalisation, NORMALISATIONS)
    if isinstance(grey_range, str):
        require_choice("grey_range", grey_range, ("auto", "percentile"))
    if in_channels not in ("auto", 1, 3):
        raise _bad("in_channels", in_channels, "auto, 1 or 3", "--in_channels 3")
    if in_channels == 1 and normalisation != "zero_one":
        raise _bad("in_channels 1 with normalisation", normalisation, "3 channels", "--normalisation zero_one")
    images = [(case.case, read_case(case.case, ref)) for case in spread(training_cases(study)) for ref in case.image]
    wanted = 3 if in_channels == "auto" and normalisation != "zero_one" else in_channels
    return Facts(
        classes=study.classes,
        channels=_channels(study, wanted, [image for _, image in images]),
        spatial_size=two_of(spatial_size),
        spacing_mm=None,
        intensity=normalisation,
        limits=_limits([_sampled(case, image) for case, image in images], grey_range),
        has_geometry=False,
        laterality_matters=study.laterality_matters if laterality_matters is None else laterality_matters,
    )


def read_case(case: str, reference: str) -> Volume:
    """Read one image; a refusal names the case."""
    try:
        return read_image(reference)
    except MedvolError as error:
        raise error.for_case(case) from error


def is_grey(colours: npt.NDArray[Any]) -> bool:
    """Tell whether an image of colours, the last axis, holds no colour beyond the rounding of JPEG."""
    tolerance = GREY_TOLERANCE if colours.dtype == np.uint8 else 0
    return bool((colours.max(axis=-1).astype(float) - colours.min(axis=-1) <= tolerance).all())


def two_of(size: Sequence[int] | int) -> tuple[int, int]:
    """Return rows and columns; one number stands for a square.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    numbers = [size] * 2 if isinstance(size, int) else list(size)
    if len(numbers) != 2 or not all(isinstance(one, int) and one > 0 for one in numbers):
        raise _bad("spatial_size", size, "two positive whole numbers, rows and columns", "--spatial_size '[64, 64]'")
    return numbers[0], numbers[1]


def _channels(study: Study, wanted: int | str, images: Sequence[Volume]) -> tuple[str, ...]:
    if len(study.channels) > 1:
        if wanted not in ("auto", len(study.channels)):
            raise MedvolError(
                "WRONG_CHANNELS",
                file=study.source,
                found=f"{len(study.channels)} images per case: {', '.join(study.channels)}",
                expected=f"{wanted} channels",
                fix="pass --in_channels auto and --normalisation zero_one, or name one image column",
            )
        return study.channels
    if wanted == "auto":
        wanted = 3 if any(one.channel_axis is not None and not is_grey(one.array) for one in images) else 1
    return GREY if wanted == 1 else COLOURS


def _sampled(case: str, image: Volume) -> Sampled:
    low, high = float(image.array.min()), float(image.array.max())
    is_8bit = low >= 0 and high <= 255 and bool(np.equal(np.mod(image.array, 1), 0).all())
    return Sampled(case, image.array.shape[:2], None, low, high, is_8bit)


def _limits(sampled: Sequence[Sampled], grey_range: Sequence[float] | str) -> tuple[float, float] | None:
    if not isinstance(grey_range, str):
        low, high = (float(one) for one in grey_range) if len(grey_range) == 2 else (0.0, 0.0)
        if not low < high:
            raise _bad("grey_range", list(grey_range), "two rising values", "--grey_range '[-160, 240]'")
        return low, high
    if grey_range == "percentile":
        return None
    eight_bits, fractions = FIXED_RANGES
    if all(one.low >= 0 and one.high <= 1 for one in sampled):
        return fractions
    return eight_bits if all(one.is_8bit for one in sampled) else None


def _bad(option: str, found: object, expected: str, fix: str) -> MedvolError:
    return MedvolError("UNKNOWN_OPTION", found=f"{option} {found}", expected=expected, fix=f"write {fix}")
