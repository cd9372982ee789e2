"""Which pixels may show a name, and what hides beside those that may not.

No program proves that pixels are free of text. So only what scanners make is taken without being told: computed
tomography, magnetic resonance and positron emission as acquired, and objects whose voxels are labels or numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.io.deid_streams import blank_comments
from medvol.io.dicom_file import truncated
from medvol.io.dicom_stored import words

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_ACQUIRED = tuple(f"{_STORAGE}{tail}" for tail in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130"))
"""CT, MR and PET: classic, enhanced, legacy converted enhanced."""

_NUMBERS = tuple(f"{_STORAGE}{tail}" for tail in ("66.4", "66.7", "481.2", "30"))
"""Segmentations, dose, parametric maps."""

_WITHOUT_PIXELS = tuple(f"{_STORAGE}{tail}" for tail in ("481.3", "66.1", "66.3", "67"))
"""Structure sets, spatial registrations, real-world value maps."""

_CAPTURES = (
    "Secondary Capture",
    "Ultrasound",
    "US Volume",
    "Angiographic",
    "XA ",
    "XRF ",
    "fluoroscopic",
    "Photoacoustic",
)
_PHOTOGRAPHS = ("VL ", "Video", "Photograph", "Endoscopic", "Microscop")
_SCREENS = ("SCREEN", "REPORT", "CAPTURE")


def require_known_object(dataset: Any, path: Path) -> None:
    """Refuse what is free text by nature: reports, documents, presentation states, plans, waveforms, raw data.

    Raises:
        MedvolError: `UNSAFE_OBJECT`.
    """
    uid = str(dataset.get("SOPClassUID") or "")
    if uid in (*_ACQUIRED, *_NUMBERS, *_WITHOUT_PIXELS) or "Image Storage" in _class_name(uid):
        return
    raise MedvolError(
        "UNSAFE_OBJECT",
        file=path,
        found=_class_name(uid) or "an object of no class in DICOM",
        expected="an image, segmentation, structure set, dose or registration",
        fix="leave it out",
    )


def require_safe_pixels(dataset: Any, path: Path) -> None:
    """Refuse pixels that may show text or a face as a photograph does.

    Raises:
        MedvolError: `PIXELS_AT_RISK`, naming the attribute that says so.
    """
    found = _risk(dataset, str(dataset.get("SOPClassUID") or ""))
    if found:
        raise MedvolError(
            "PIXELS_AT_RISK",
            file=path,
            found=found,
            expected="pixels as a scanner acquired them",
            fix="look at them, then --allow-pixels",
        )


def _risk(dataset: Any, uid: str) -> str:
    """Return why pixels may show a name, empty when nothing says so."""
    if uid in (*_NUMBERS, *_WITHOUT_PIXELS):
        return ""
    name = _class_name(uid)
    burned = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    kind = words(dataset, "ImageType")
    acquired = uid in _ACQUIRED
    signs = (
        (any(word in name for word in (*_CAPTURES, *_PHOTOGRAPHS)), name),
        (burned not in ("", "NO"), "BurnedInAnnotation that is not NO"),
        (not burned and not acquired, f"{name} without BurnedInAnnotation"),
        (_is(dataset, "RecognizableVisualFeatures", "YES"), "RecognizableVisualFeatures YES"),
        (kind[:1] not in ([], ["ORIGINAL"]) or kind[1:2] not in ([], ["PRIMARY"]), "ImageType not ORIGINAL, PRIMARY"),
        (any(word in one for one in kind for word in _SCREENS), "ImageType of a screen or report"),
        (bool(dataset.get("ConversionType")), "ConversionType, which captures have"),
        ((dataset.get("SamplesPerPixel") or 1) != 1, "pixels in colour"),
        (acquired and not kind and not _has_place(dataset), "neither ImageType nor a position in the patient"),
    )
    return next((words for applies, words in signs if applies), "")


def tidy_pixels(dataset: Any, path: Path) -> None:
    """Clear, in place, what lies beside the pixels: bytes behind them, overlays in unused bits, comments in streams.

    Call it before overlays are removed. The stored values stay as they are.

    Raises:
        MedvolError: `TRUNCATED` when pixels are missing, `PIXELS_AT_RISK` for an overlay within compressed pixels.
    """
    if str(dataset.get("SOPClassUID") or "") in _WITHOUT_PIXELS:
        return
    if "PixelData" not in dataset:
        if not {"FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
            raise truncated(path, "no pixels", "an image")
        return
    element = dataset["PixelData"]
    syntax = dataset.file_meta.TransferSyntaxUID
    planes = _embedded_overlays(dataset)
    if syntax.is_encapsulated:
        if planes:
            raise MedvolError(
                "PIXELS_AT_RISK",
                file=path,
                found="an overlay within compressed pixels",
                fix="decompress the file first",
            )
        element.value = blank_comments(element.value)
        return
    promised = _promised_bytes(dataset)
    if len(element.value) < promised:
        raise truncated(path, f"{len(element.value):,} bytes of pixels", f"{promised:,}")
    data = element.value[:promised]
    if planes:
        data = _without_overlays(dataset, data, is_little=syntax.is_little_endian)
    element.value = data + bytes(len(data) % 2)


def _promised_bytes(dataset: Any) -> int:
    count = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    bits = count * int(dataset.get("NumberOfFrames") or 1) * int(dataset.BitsAllocated)
    if "422" in str(dataset.get("PhotometricInterpretation")):
        bits = bits * 2 // 3
    return (bits + 7) // 8


def _embedded_overlays(dataset: Any) -> bool:
    """Tell whether an overlay lies in bits of the pixels that carry no value (retired, still met)."""
    groups = {tag.group for tag in dataset.keys() if 0x6000 <= tag.group <= 0x60FF and tag.group % 2 == 0}  # noqa: SIM118
    return any((group, 0x3000) not in dataset for group in groups)


def _without_overlays(dataset: Any, data: bytes, *, is_little: bool) -> bytes:
    """Return native pixels with the bits beyond the stored ones cleared, a two's complement extended into them."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32):
        return data
    order = "<" if is_little else ">"
    pixels = np.frombuffer(data, f"{order}u{allocated // 8}")
    below = int(dataset.HighBit) - stored + 1
    mask = ((1 << stored) - 1) << below
    cleared = pixels & pixels.dtype.type(mask)
    if int(dataset.get("PixelRepresentation") or 0) == 1 and below == 0:
        is_negative = (cleared >> (stored - 1)) & 1 == 1
        cleared = np.where(is_negative, cleared | pixels.dtype.type(((1 << allocated) - 1) ^ mask), cleared)
    return cleared.astype(pixels.dtype).tobytes()


def _is(dataset: Any, keyword: str, value: str) -> bool:
    return str(dataset.get(keyword) or "").strip().upper() == value


def _has_place(dataset: Any) -> bool:
    return bool(dataset.get("ImagePositionPatient")) or "PerFrameFunctionalGroupsSequence" in dataset


def _class_name(uid: str) -> str:
    from pydicom.uid import UID

    name = UID(uid).name
    return "" if name == uid else str(name)
