"""What a caller may decide about reading; every default refuses rather than guesses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from medvol.errors import MedvolError, nearest

AFFINE_CHOICES = ("auto", "qform", "sform")
UNEVEN_CHOICES = ("refuse", "resample")


@dataclass(frozen=True)
class ReadOptions:
    """How a volume is read. Hashable, so that a cache can use it as a part of its key.

    Args:
        affine: Which NIfTI matrix counts; `auto` is the sform where its code is positive, else the qform.
        assume_spacing_mm: Millimetres per voxel along x, y, z, used only where a file states none.
        nan_fill: Value put in place of NaN and infinity; None refuses such voxels.
        max_bytes: Largest decoded volume that is read.
        max_ratio: Largest decoded size per compressed byte for a volume above 1 GiB; below, memory is bounded anyway,
            and an honest mask compresses up to 1000 to 1.
        channels: Whether the array has channels behind its spatial axes: a fourth axis of a NIfTI, NRRD or MetaImage,
            the last axis of an npy or npz array. Otherwise such an array is refused.
        uneven_spacing: What happens to a DICOM series with missing slices or uneven steps: refused, or interpolated
            linearly between neighbouring slices onto even steps, with a note.
        pad_to: Value put in place of the padding that a DICOM header names; None leaves it, with a note of its share.
    """

    affine: Literal["auto", "qform", "sform"] = "auto"
    assume_spacing_mm: tuple[float, float, float] | None = None
    nan_fill: float | None = None
    max_bytes: int = 8 << 30
    max_ratio: float = 200.0
    channels: bool = False
    uneven_spacing: Literal["refuse", "resample"] = "refuse"
    pad_to: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("affine", AFFINE_CHOICES), ("uneven_spacing", UNEVEN_CHOICES)):
            value = getattr(self, name)
            if value not in choices:
                raise MedvolError(
                    "UNKNOWN_OPTION",
                    found=f"{name}='{value}'",
                    expected=", ".join(choices),
                    fix=nearest(str(value), choices),
                )
        spacing = self.assume_spacing_mm
        if spacing is not None and (len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing)):
            raise MedvolError(
                "UNKNOWN_OPTION",
                found=f"assume_spacing_mm={spacing}",
                expected="three positive numbers, in millimetres",
            )
        for name, fill in (("nan_fill", self.nan_fill), ("pad_to", self.pad_to)):
            if fill is not None and not math.isfinite(fill):
                raise MedvolError("UNKNOWN_OPTION", found=f"{name}={fill}", expected="a finite number")
