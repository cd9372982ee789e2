"""Naming one volume among several of a DICOM folder: `folder#UID`, `folder#UID;EchoTime=4.6`, `folder#SeriesNumber=3`.

The fragment is a series UID, or `Name=value` pairs, or both, separated by `;`. Names are the tags of
`medvol.io.dicom_tags`, what describes a whole series or an image in it, and options of reading, which are spelled in
lower case: `folder#UID;suv=bw`, see `medvol.io.options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvol.errors import MedvolError, nearest
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_tags import CLOCK_TAGS, SPLITTING_TAGS, plain_text
from medvol.io.options import REFERENCE_OPTIONS

IMAGE_TAGS = ("Orientation", "Size", "StackID", "ImageType")
"""What may tell the images of one series apart that do not lie on one grid."""

NONE = "none"
"""The value of a tag that an image does not have, as the gradient direction of a volume without diffusion."""

SERIES_TAGS = ("SeriesNumber", "SeriesDescription", "Modality")


@dataclass(frozen=True)
class Selection:
    """Which images of a folder are meant.

    Args:
        uid: Series Instance UID, None for any.
        tags: Names and values that must all agree.
        options: Names and values of reading options, which choose nothing.
    """

    uid: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @property
    def clocks(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose value is a rank among times, which only the volumes of one image have."""
        return tuple(pair for pair in self.tags if pair[0] in CLOCK_TAGS)


def parse_selection(fragment: str | None, folder: Path) -> Selection:
    """Return the selection that a fragment names; everything for None.

    Raises:
        MedvolError: `BAD_REFERENCE` for a name that is unknown.
    """
    uid, tags, options = None, [], []
    known = (*SERIES_TAGS, *IMAGE_TAGS, *SPLITTING_TAGS)
    for part in (fragment or "").split(";"):
        name, mark, value = part.partition("=")
        if mark and name in REFERENCE_OPTIONS:
            options.append((name, value.strip()))
        elif mark and name in known:
            tags.append((name, value.strip()))
        elif mark:
            raise MedvolError(
                "BAD_REFERENCE",
                file=folder,
                found=f"'{name[:40]}' in the fragment",
                expected="UID;Name=value with a name such as EchoTime, SeriesNumber or Orientation",
                fix=nearest(name, (*known, *REFERENCE_OPTIONS)),
                details=(*known, *REFERENCE_OPTIONS),
            )
        elif part:
            uid = part
    return Selection(uid, tuple(tags), tuple(options))


def select(slices: Sequence[SliceHeader], selection: Selection, folder: Path) -> list[SliceHeader]:
    """Return the slices that agree with a selection; clock times are left to the volumes of one image.

    Raises:
        MedvolError: `NOT_FOUND`, naming the values that there are.
    """
    chosen = [one for one in slices if selection.uid is None or one.series_uid == selection.uid]
    if not chosen and slices:
        raise _not_found(folder, "series", selection.uid or "", {one.series_uid for one in slices})
    for name, value in selection.tags:
        if name in CLOCK_TAGS:
            continue
        agreeing = [one for one in chosen if _equal(tag_of(one, name) or NONE, value)]
        if chosen and not agreeing:
            raise _not_found(folder, name, value, {tag_of(one, name) or NONE for one in chosen})
        chosen = agreeing
    return chosen


def tag_of(one: SliceHeader, name: str) -> str:
    """Return the value of a selectable name in a slice, empty when it has none."""
    if name == "Orientation":
        return _orientation(one)
    if name == "Size":
        return f"{one.size[0]}x{one.size[1]}"
    if name == "SeriesNumber":
        return "" if one.number is None else str(one.number)
    if name == "SeriesDescription":
        return plain_text(one.description)
    return one.modality if name == "Modality" else dict(one.tags).get(name, "")


def fragment_of(uid: str, tags: Sequence[tuple[str, str]]) -> str:
    """Return the fragment that selects a series and the values of tags in it."""
    return ";".join([*([uid] if uid else []), *(f"{name}={value}" for name, value in tags)])


def _orientation(one: SliceHeader) -> str:
    if one.orientation is None:
        return ""
    normal = np.abs(np.cross(one.orientation[:3], one.orientation[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _equal(first: str, second: str) -> bool:
    if first.casefold() == second.casefold():
        return True
    try:
        return abs(float(first) - float(second)) <= 1e-6 * max(abs(float(first)), 1e-3)
    except ValueError:
        return False


def _not_found(folder: Path, name: str, value: str, known: set[str]) -> MedvolError:
    listed = sorted(known)
    return MedvolError(
        "NOT_FOUND",
        file=folder,
        found=f"no {name} {value}"[:90],
        expected=f"one of {len(listed)} series" if name == "series" else f"one of {', '.join(listed)}"[:90],
        fix=nearest(value, known)[:90],
        details=listed,
    )
