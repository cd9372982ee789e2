"""The frames of a DICOM segmentation: where each lies, which segment it shows, and its voxels one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, lps_to_ras
from medvol.io.dicom_file import truncated
from medvol.io.dicom_frames import group_values, shared_groups
from medvol.io.dicom_geometry import COSINE_TOLERANCE
from medvol.io.dicom_target import Referenced

LABELMAP, BINARY, FRACTIONAL = "LABELMAP", "BINARY", "FRACTIONAL"

_TILES = ("TotalPixelMatrixRows", "ImageOrientationSlide")


@dataclass(frozen=True)
class Frame:
    """One plane of a segmentation.

    Args:
        segment: Number of the segment it shows; 0 in a label map, whose pixels are the numbers.
        affine: (column, row, 1) index to RAS+ millimetres; the third axis is a millimetre along the normal.
        between_mm: Distance between planes that the file states; None when it states none.
        sources: SOP Instance UIDs of the slices it was drawn on.
    """

    segment: int
    affine: Affine
    between_mm: float | None
    sources: frozenset[str]


def segments_of(dataset: Any) -> list[tuple[int, str]]:
    """Return number and label of each segment but a label map's background, whose number is 0."""
    items = dataset.get("SegmentSequence") or ()
    return [(int(one.SegmentNumber), str(one.get("SegmentLabel") or "")) for one in items if int(one.SegmentNumber)]


def frames_of(dataset: Any, path: Path) -> tuple[Frame, ...]:
    """Return the frames in the order of the file.

    Raises:
        MedvolError: `TILED_IMAGE`, `NO_GEOMETRY`, `BAD_AFFINE`, or `BAD_DICOM` for frames without functional groups.
    """
    if "TILED" in str(dataset.get("DimensionOrganizationType")) or any(name in dataset for name in _TILES):
        raise _refusal("TILED_IMAGE", path, "a segmentation of a tiled slide", "use a reader of whole-slide images")
    groups: Any = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(groups) != count:
        raise _refusal("BAD_DICOM", path, f"{count} frames with {len(groups)} functional groups")
    shared = shared_groups(dataset)
    is_map = str(dataset.get("SegmentationType")) == LABELMAP
    return tuple(_frame((own, shared), path, is_map=is_map) for own in groups)


def references_of(dataset: Any, frames: tuple[Frame, ...]) -> Referenced:
    """Return what a segmentation says about the image it was drawn on."""
    series = dataset.get("ReferencedSeriesSequence") or ()
    instances = {
        str(one.get("ReferencedSOPInstanceUID") or "")
        for item in series
        for one in item.get("ReferencedInstanceSequence") or ()
    }
    frame_uid = str(dataset.get("FrameOfReferenceUID") or "")
    return Referenced(
        frozenset({frame_uid} - {""}),
        frozenset({str(item.get("SeriesInstanceUID") or "") for item in series} - {""}),
        frozenset((instances | {uid for frame in frames for uid in frame.sources}) - {""}),
    )


def iterate_masks(dataset: Any, path: Path) -> Iterator[npt.NDArray[Any]]:
    """Yield the pixels of each frame, (column, row): of a label map the segment numbers, else true in the segment.

    A voxel of a fractional segmentation is inside when its fraction is above half of the maximum, so that two segments
    which share a voxel half and half do not overlap.

    Raises:
        MedvolError: `TRUNCATED`, `NEED_CODEC`, or `BAD_DTYPE` for a kind of segmentation that is not known.
    """
    kind = str(dataset.get("SegmentationType"))
    if kind not in (LABELMAP, BINARY, FRACTIONAL):
        raise _refusal("BAD_DTYPE", path, f"a segmentation of the kind '{kind[:20]}'")
    if int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _packed(dataset, path)
        return
    limit = float(dataset.get("MaximumFractionalValue") or 255) / 2 if kind == FRACTIONAL else 0.0
    for pixels in _decoded(dataset, path):
        yield pixels.T if kind == LABELMAP else np.greater(pixels.T, limit)


def _frame(groups: tuple[Any, Any], path: Path, *, is_map: bool) -> Frame:
    position = group_values(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = group_values(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = group_values(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise _refusal("NO_GEOMETRY", path, "a frame without position, orientation or pixel spacing")
    between = group_values(groups, "PixelMeasuresSequence", "SpacingBetweenSlices", 1)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    off = max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column))
    if off > COSINE_TOLERANCE or min(spacing) <= 0:
        raise _refusal("BAD_AFFINE", path, f"directions off unit length or right angle by {off:.2g}")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[1], column * spacing[0], np.cross(row, column)], axis=1)
    affine[:3, 3] = position
    segment = 0 if is_map else _segment(groups)
    return Frame(segment, lps_to_ras(affine), between[0] if between else None, _sources(groups))


def _segment(groups: tuple[Any, Any]) -> int:
    for one in groups:
        if items := one.get("SegmentIdentificationSequence"):
            return int(items[0].ReferencedSegmentNumber)
    raise ValueError("a frame that names no segment")


def _sources(groups: tuple[Any, Any]) -> frozenset[str]:
    return frozenset(
        str(source.get("ReferencedSOPInstanceUID") or "")
        for one in groups
        for item in one.get("DerivationImageSequence") or ()
        for source in item.get("SourceImageSequence") or ()
    )


def _packed(dataset: Any, path: Path) -> Iterator[npt.NDArray[Any]]:
    """Unpack one frame of bits at a time; frames follow each other without padding and start within a byte."""
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    size = rows * columns
    data = np.frombuffer(dataset.get("PixelData") or b"", dtype=np.uint8)
    if len(data) * 8 < size * count:
        raise truncated(path, f"{len(data):,} bytes of pixels", f"{-(-size * count // 8):,}")
    for index in range(count):
        first, last = index * size // 8, -(-(index + 1) * size // 8)
        bits = np.unpackbits(data[first:last], bitorder="little")
        start = index * size - first * 8
        yield bits[start : start + size].reshape(rows, columns).T.astype(bool)


def _decoded(dataset: Any, path: Path) -> Iterator[npt.NDArray[Any]]:
    from pydicom.pixels import get_decoder, iter_pixels

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        can_decode = not syntax.is_encapsulated or bool(get_decoder(syntax).available_plugins)
    except NotImplementedError:  # a compression that pydicom does not know, such as video
        can_decode = False
    if not can_decode:
        fix = "pip install pyjpegls pylibjpeg pylibjpeg-openjpeg"
        raise _refusal("NEED_CODEC", path, f"compression {syntax.name}"[:60], fix)
    yield from iter_pixels(dataset, raw=True)


def _refusal(code: str, path: Path, found: str, fix: str = "export the segmentation again") -> MedvolError:
    expected = "planes with position, orientation and spacing, and voxels that can be decoded"
    return MedvolError(code, file=path, found=found, expected=expected, fix=fix)
