"""What may tell the volumes of one series apart: echo, b-value, direction, time, phase, acquisition.

Every tag has one name, whether it comes from a file's own attributes, a vendor's private ones or the functional groups
of a frame. Values are short texts. Clock times count by their rank among the images and are never shown.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

Steps = tuple[str | int, ...]

# In the order in which they are preferred as explanation: physics, then position in time, then bookkeeping.
_OF_FILE: Mapping[str, tuple[Steps, ...]] = {
    "EchoTime": (("EchoTime",),),
    "EchoNumbers": (("EchoNumbers",),),
    # Siemens, GE (first of four numbers) and Philips kept it in private attributes for years.
    "DiffusionBValue": (("DiffusionBValue",), (0x0019100C,), (0x00431039, 0), (0x20011003,)),
    "DiffusionGradientOrientation": (("DiffusionGradientOrientation",), (0x0019100E,), (0x001910BB,)),
    "InversionTime": (("InversionTime",),),
    "FlipAngle": (("FlipAngle",),),
    "RepetitionTime": (("RepetitionTime",),),
    "KVP": (("KVP",),),
    "TemporalPositionIdentifier": (("TemporalPositionIdentifier",),),
    "TriggerTime": (("TriggerTime",),),
    "CardiacPhase": ((0x20011008,),),
    "FrameReferenceTime": (("FrameReferenceTime",),),
    "ComplexImageComponent": (("ComplexImageComponent",), (0x0043102F,), (0x20051011,)),
    "ImageType": (("ImageType",),),
    "ConvolutionKernel": (("ConvolutionKernel",),),
    "ReceiveCoilName": (("ReceiveCoilName",),),
    "AcquisitionNumber": (("AcquisitionNumber",),),
    "AcquisitionTime": (("AcquisitionTime",),),
    "ContentTime": (("ContentTime",),),
}

_FRAME_TYPES = ("MRImageFrameType", "CTImageFrameType", "PETFrameType", "XRay3DFrameType")
_OF_FRAME: Mapping[str, tuple[Steps, ...]] = {
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "DiffusionGradientOrientation": (
        ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
    ),
    "InversionTime": (("MRModifierSequence", "InversionTimes"),),
    "FlipAngle": (("MRTimingAndRelatedParametersSequence", "FlipAngle"),),
    "RepetitionTime": (("MRTimingAndRelatedParametersSequence", "RepetitionTime"),),
    "KVP": (("CTXRayDetailsSequence", "KVP"),),
    "TemporalPositionIdentifier": (
        ("FrameContentSequence", "TemporalPositionIndex"),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ),
    "TriggerTime": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),),
    "ComplexImageComponent": (("MRImageFrameTypeSequence", "ComplexImageComponent"),),
    "ImageType": tuple((f"{kind}Sequence", "FrameType") for kind in _FRAME_TYPES),
    "MetaboliteMap": (("MRMetaboliteMapSequence", "MetaboliteMapDescription"),),
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "StackID": (("FrameContentSequence", "StackID"),),
    "AcquisitionTime": (("FrameContentSequence", "FrameAcquisitionDateTime"),),
    "ContentTime": (("FrameContentSequence", "FrameReferenceDateTime"),),
}
_DIMENSIONS = tuple(f"Dimension{index + 1}" for index in range(8))

_PHILIPS_CREATOR, _PHILIPS_SCALE, _PHILIPS_FRAME = 0x20050010, 0x2005100E, 0x2005140F
PHILIPS_TAGS = (_PHILIPS_CREATOR, _PHILIPS_SCALE)
"""Private attributes that `philips_scale` needs."""

TIME_TAGS = ("AcquisitionTime", "ContentTime")
"""Tags whose values are times of the day: only their order is used."""

TRIGGER_RANK = "TriggerRank"
"""The rank of an image's trigger time among those at its place, for a heart whose beats are not equally long."""

CLOCK_TAGS = (*TIME_TAGS, TRIGGER_RANK)
"""Names whose value is a rank, which only the volumes of one image have."""

CONTRAST_TAGS = ("EchoTime", "DiffusionBValue", "InversionTime", "KVP", "ComplexImageComponent", "ConvolutionKernel")
"""Tags that have one value in all slices of a volume, where they have any."""

SPLITTING_TAGS = (
    *(name for name in _OF_FILE if name not in TIME_TAGS),
    *("MetaboliteMap", *_DIMENSIONS, *TIME_TAGS, TRIGGER_RANK),
)
"""Names that may tell volumes of one image apart, the preferred ones first."""

FILE_TAGS = tuple(
    dict.fromkeys(one for paths in _OF_FILE.values() for path in paths for one in path[:1] if one != "ImageType")
)
"""Attributes that `file_tags` needs, by keyword or number."""


def file_tags(dataset: Any) -> tuple[tuple[str, str], ...]:
    """Return name and value of the tags that a file's own attributes state."""
    return tuple((name, value) for name, paths in _OF_FILE.items() if (value := _first(dataset, paths)))


def frame_tags(own: Any, shared: Any, of_file: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the tags of one frame: its own functional groups, else the shared ones, else those of the file."""
    found = dict(of_file)
    for name, paths in _OF_FRAME.items():
        value = _first(own, paths) or _first(shared, paths)
        if value:
            found[name] = value
    indices = _look_up(own, ("FrameContentSequence", "DimensionIndexValues"))
    if indices is not None:
        values = indices if hasattr(indices, "__len__") else [indices]
        found |= {name: str(int(one)) for name, one in zip(_DIMENSIONS, values, strict=False)}
    return tuple(found.items())


def philips_scale(dataset: Any) -> float | None:
    """Return the scale slope (2005,100E) of a Philips MR: pixels divided by it have the scanner's own unit.

    None where there is none, or where the block belongs to another program.
    """
    creator = _text(_look_up(dataset, (_PHILIPS_CREATOR,)))
    value = _look_up(dataset, (_PHILIPS_SCALE,))
    if isinstance(value, bytes):
        value = struct.unpack("<f", value)[0] if len(value) == 4 else None
    if value is None or not creator.startswith("Philips MR Imaging"):
        return None
    scale = float(value)
    return scale if math.isfinite(scale) and scale > 0 else None


def frame_scale(own: Any, shared: Any) -> float | None:
    """Return the Philips scale slope of a frame, which stands in a private sequence of its functional groups."""
    for groups in (own, shared):
        items = _look_up(groups, (_PHILIPS_FRAME,))
        if items is not None and not isinstance(items, bytes | str) and len(items):
            return philips_scale(items[0])
    return None


def plain_text(text: str) -> str:
    """Return a text without the characters that a reference gives a meaning, at most 64 characters."""
    return "".join(letter for letter in text if letter.isprintable() and letter not in "[];#=")[:64].strip()


def _first(dataset: Any, paths: tuple[Steps, ...]) -> str:
    return next((text for path in paths if (text := _text(_look_up(dataset, path)))), "")


def _look_up(dataset: Any, path: Steps) -> Any:
    """Follow keywords through the first items of sequences; a number behind an attribute picks one of its values."""
    value = dataset
    for position, step in enumerate(path):
        if position and isinstance(step, int):
            value = _split(value)
            return value[step] if len(value) > step else None
        if value is None or (position and not len(value)):
            return None
        item = value[0] if position else value
        if step not in item:
            return None
        value = item.get(step)
        value = getattr(value, "value", value) if isinstance(step, int) else value
    return value


def _split(value: Any) -> list[Any]:
    if isinstance(value, bytes):
        return list(value.decode("ascii", "replace").split("\\"))
    return [value] if isinstance(value, str) or not hasattr(value, "__len__") else list(value)


def _text(value: Any) -> str:
    """Return a short text without the characters that a reference gives a meaning."""
    if isinstance(value, bytes) and len(value) in (4, 8, 24) and not value.decode("latin-1").isprintable():
        # A private attribute in an implicit encoding: Philips keeps 32-bit, Siemens 64-bit floating point.
        value = list(struct.unpack("<f" if len(value) == 4 else f"<{len(value) // 8}d", value))
    return plain_text(",".join(_one(one) for one in _split(value)) if value is not None else "")


def _one(value: Any) -> str:
    if isinstance(value, str) and len(value) > 16:  # a date with a time, which floating point would round
        return value.strip(" \0")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value).strip(" \0")
    return f"{round(number, 3) + 0.0:.9g}"
