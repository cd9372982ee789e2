"""The frames of an enhanced multi-frame file as slices, each by its own functional groups.

What a frame does not state itself stands in the shared groups. The order of frames in the file means nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medvol.errors import MedvolError
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_stored import Numbers, numbers
from medvol.io.dicom_tags import frame_scale, frame_tags


def expand(dataset: Any, header: SliceHeader) -> tuple[SliceHeader, ...]:
    """Return one slice per frame of an enhanced file, or the file's header with the reason why that is impossible."""
    groups: Any = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    problem = header.problem or _problem(dataset, header, len(groups))
    if problem is not None:
        return (replace(header, problem=problem),)
    shared = shared_groups(dataset)
    return tuple(_frame(own, shared, header, index) for index, own in enumerate(groups))


def _frame(own: Any, shared: Any, header: SliceHeader, index: int) -> SliceHeader:
    groups = own, shared
    thickness = group_values(groups, "PixelMeasuresSequence", "SliceThickness", 1)
    slope = group_values(groups, "PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = group_values(groups, "PixelValueTransformationSequence", "RescaleIntercept", 1)
    return replace(
        header,
        # The order of files is the only number of a frame; a gap in it says nothing about missing slices.
        instance=None,
        spacing=group_values(groups, "PixelMeasuresSequence", "PixelSpacing", 2),
        thickness=thickness[0] if thickness else None,
        position=group_values(groups, "PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=group_values(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        rescale=(slope[0] if slope else header.rescale[0], intercept[0] if intercept else header.rescale[1]),
        tags=frame_tags(own, shared, header.tags),
        frame=index,
        scale=frame_scale(own, shared),
        has_real_world=header.has_real_world or any("RealWorldValueMappingSequence" in one for one in groups),
    )


def shared_groups(dataset: Any) -> Any:
    """Return what all frames of an enhanced file have in common, as a data set."""
    from pydicom.dataset import Dataset

    groups: Any = dataset.get("SharedFunctionalGroupsSequence") or ()
    # Some writers repeat everything per frame and leave out the shared groups.
    return groups[0] if len(groups) else Dataset()


def group_values(groups: tuple[Any, Any], sequence: str, keyword: str, count: int) -> Numbers | None:
    """Return the numbers of the first item of a sequence, of a frame's own groups before the shared ones."""
    for one in groups:
        items = one.get(sequence)
        if items and (found := numbers(items[0], keyword, count)) is not None:
            return found
    return None


def _problem(dataset: Any, header: SliceHeader, groups: int) -> MedvolError | None:
    if "ConcatenationUID" in dataset:
        return MedvolError(
            "CONCATENATION",
            file=header.path,
            found="a part of a multi-frame image that was cut into several files",
            expected="a file with all frames",
            fix="export it in one file, or convert it with dcm2niix",
        )
    if groups != header.frames:
        return MedvolError(
            "ENHANCED_MULTIFRAME",
            file=header.path,
            found=f"{header.frames} frames with {groups} functional groups",
            expected="one functional group per frame",
            fix="export it again, or convert it with dcm2niix",
        )
    return None
