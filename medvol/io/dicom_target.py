"""The grid that a DICOM label is drawn for, and whether a label belongs to it.

A segmentation or a structure set holds positions in millimetres of a frame of reference. They mean a place in an image
only if the image states the same frame; where one of the two states none, the label must reference the image's series.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from medvol.errors import MedvolError
from medvol.geometry import Affine, spacing_mm
from medvol.io.dicom_geometry import arrange
from medvol.io.dicom_groups import choose_group, scan
from medvol.io.dicom_header import is_dicom_file
from medvol.io.dicom_select import parse_selection
from medvol.io.dicom_volumes import only_volume
from medvol.io.files import existing
from medvol.io.options import ReadOptions, with_texts
from medvol.io.reference import Reference, parse_reference

GRID_TOLERANCE = 0.1
"""Largest distance between voxel centres that are one, as a share of the smallest spacing; as `same_grid` has it."""


@dataclass(frozen=True)
class Target:
    """The grid of an image, and by which names a label refers to it.

    Args:
        shape: Voxels along x, y, z.
        affine: Voxel index to RAS+ millimetres.
        is_dicom: Whether the image states its identity at all.
        frame_uid: Frame of Reference UID; empty in many anonymised studies.
        series_uid: Series Instance UID.
        instance_uids: SOP Instance UIDs of the slices.
    """

    shape: tuple[int, ...]
    affine: Affine
    is_dicom: bool = False
    frame_uid: str = ""
    series_uid: str = ""
    instance_uids: frozenset[str] = frozenset()

    @property
    def tolerance_mm(self) -> float:
        """Largest distance between a label's voxel centre and the image's that is still the same place."""
        return float(GRID_TOLERANCE * spacing_mm(self.affine).min())


@dataclass(frozen=True)
class Referenced:
    """What a label says about the image it was drawn on.

    Args:
        frame_uids: Frames of reference.
        series_uids: Series.
        instance_uids: Slices.
    """

    frame_uids: frozenset[str] = frozenset()
    series_uids: frozenset[str] = frozenset()
    instance_uids: frozenset[str] = frozenset()


def target_of(image: str | PathLike[str]) -> Target:
    """Return the grid of an image: of a DICOM series by its headers alone, of another file by reading it.

    Raises:
        MedvolError: `NO_GEOMETRY` for a format without positions, or what reading the image finds.
    """
    reference = parse_reference(image)
    path = existing(reference.path)
    if path.is_dir() or is_dicom_file(path):
        return _target_of_series(reference)
    from medvol.io.read import read_channels

    volume = read_channels(image)
    shape = tuple(length for axis, length in enumerate(volume.array.shape) if axis != volume.channel_axis)
    if not volume.has_geometry or len(shape) != 3:
        raise MedvolError(
            "NO_GEOMETRY",
            file=path,
            found="an image without positions in millimetres under a DICOM label",
            expected="a DICOM series, NIfTI, NRRD or MetaImage",
            fix="name the original image",
        )
    return Target(shape, volume.affine)


def require_same_frame(target: Target, referenced: Referenced, path: Path) -> tuple[str, ...]:
    """Return notes on how a label and an image belong together.

    Raises:
        MedvolError: `FRAME_MISMATCH`.
    """
    if not target.is_dicom:
        return ("the image is no DICOM: frame of reference not compared, placed by millimetres",)
    is_on_series = target.series_uid in referenced.series_uids or bool(target.instance_uids & referenced.instance_uids)
    if target.frame_uid and referenced.frame_uids:
        if target.frame_uid in referenced.frame_uids:
            other = bool(referenced.series_uids or referenced.instance_uids) and not is_on_series
            return ("drawn on another series of the same frame of reference",) if other else ()
        found, fix = f"frame of reference ...{min(referenced.frame_uids)[-24:]}", "name the series that it was drawn on"
    elif is_on_series:
        return ("one of image and label states no frame of reference: matched by the series that it references",)
    else:
        found, fix = "no common frame of reference, nor a reference to the image's series", "take the original export"
    shown = target.frame_uid[-24:] or f"of series {target.series_uid[-24:]}"
    raise MedvolError("FRAME_MISMATCH", file=path, found=found, expected=f"the image's, ...{shown}", fix=fix)


def _target_of_series(reference: Reference) -> Target:
    path = reference.path
    selection = parse_selection(reference.key, path)
    group, _ = choose_group(scan(path), path, selection)
    slices = only_volume(group, selection, path).slices
    arranged = arrange(slices, with_texts(ReadOptions(), selection.options, path))
    first = arranged.slices[0]
    rows, columns = first.size
    count = len(arranged.slices) if arranged.planes is None else len(arranged.planes)
    return Target(
        (columns, rows, count),
        arranged.affine,
        is_dicom=True,
        frame_uid=first.frame_uid,
        series_uid=first.series_uid,
        instance_uids=frozenset(one.instance_uid for one in arranged.slices if one.instance_uid),
    )
