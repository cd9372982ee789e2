"""What a caller may decide about reading; every default refuses rather than guesses.

A reference may carry what its volume needs, so that a case table, a bundle and the command line can say it for one row:
`folder#UID;suv=bw`, `folder#uneven_spacing=resample;pad_to=-1024`. The names are the fields of `ReadOptions` that
`REFERENCE_OPTIONS` lists; all other callers pass `ReadOptions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

from medvol.errors import MedvolError, nearest
from medvol.geometry import Affine, affine_from

AFFINE_CHOICES = ("auto", "qform", "sform")
UNEVEN_CHOICES = ("refuse", "resample", "fill")
PHILIPS_CHOICES = ("display", "float")
ASSUME_CHOICES = ("", "ImagerPixelSpacing")
SUV_CHOICES = (False, True, "bw")


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
            linearly between neighbouring slices onto even steps (`resample`), or, where whole slices are missing, given
            planes of the value `pad_to` in their place (`fill`); both with a note.
        pad_to: Value put in place of the padding that a DICOM header names; None leaves it, with a note of its share.
        philips: The values of a Philips MR: `display` is the rescale of the header, as everybody else's; `float` undoes
            the scaling of the display by the private scale slope (2005,100E), which makes series comparable.
        suv: Whether a PET is turned into standardised uptake values by body weight, g/ml; `bw` means the same as True.
            Refused unless the header has all that it takes, see `medvol.io.dicom_suv`.
        assume: `ImagerPixelSpacing` takes the pixel spacing at the detector of a projection, which is magnified, for
            that of the patient where a DICOM file states no other.
    """

    affine: Literal["auto", "qform", "sform"] = "auto"
    assume_spacing_mm: tuple[float, float, float] | None = None
    nan_fill: float | None = None
    max_bytes: int = 8 << 30
    max_ratio: float = 200.0
    channels: bool = False
    uneven_spacing: Literal["refuse", "resample", "fill"] = "refuse"
    pad_to: float | None = None
    philips: Literal["display", "float"] = "display"
    suv: bool | Literal["bw"] = False
    assume: Literal["", "ImagerPixelSpacing"] = ""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = [str(choice) for choice in choices if choice != ""]
                raise MedvolError(
                    "UNKNOWN_OPTION",
                    found=f"{name}='{value}'"[:80],
                    expected=", ".join(known),
                    fix=nearest(str(value), known),
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
        if self.uneven_spacing == "fill" and self.pad_to is None:
            raise MedvolError(
                "UNKNOWN_OPTION",
                found="uneven_spacing='fill' without a value to fill with",
                expected="pad_to as well",
                fix="for CT pad_to=-1024",
            )


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "affine": AFFINE_CHOICES,
    "uneven_spacing": UNEVEN_CHOICES,
    "philips": PHILIPS_CHOICES,
    "suv": SUV_CHOICES,
    "assume": ASSUME_CHOICES,
}


def _spacing(text: str) -> tuple[float, ...]:
    return tuple(float(step) for step in text.split(","))


REFERENCE_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "assume": str,
    "assume_spacing_mm": _spacing,
    "pad_to": float,
    "philips": str,
    "suv": str,
    "uneven_spacing": str,
}
"""Options that the fragment of a DICOM reference may carry, and how their text is understood."""


def assumed_affine(spacing_mm: tuple[float, float, float]) -> tuple[Affine, str]:
    """Return the affine of `assume_spacing_mm`, and the sentence that notes it."""
    steps = ", ".join(f"{step:g}" for step in spacing_mm)
    return affine_from(spacing_mm), f"spacing {steps} mm and RAS axes assumed as asked for"


def with_texts(options: ReadOptions, pairs: Sequence[tuple[str, str]], file: str | PathLike[str] = "") -> ReadOptions:
    """Return the options with those of a reference in their place, all of them texts.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for a value that its option does not take.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        try:
            values[name] = REFERENCE_OPTIONS[name](text)
        except ValueError:
            raise MedvolError(
                "UNKNOWN_OPTION",
                file=file,
                found=f"{name}={text}"[:80],
                expected="three numbers, in millimetres" if name == "assume_spacing_mm" else "a number",
            ) from None
    return replace(options, **values)
