"""Label maps by reference: masks of any format, DICOM segmentations (SEG) and structure sets (RTSTRUCT).

A SEG or RTSTRUCT needs the image that it was drawn on, since it says where structures lie and not on which grid.
`seg.dcm`, or a folder with one such file, names all structures; `seg.dcm#liver;tumour?` those listed, in this order as
1, 2 and so on, see `medvol.io.label_names`; `folder#UID;liver` the file of that series or instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.dicom_file import check_inflated_size, dicom_errors
from medvol.io.dicom_header import is_dicom
from medvol.io.dicom_target import Target, target_of
from medvol.io.files import existing, walk_files
from medvol.io.label_canvas import Canvas, require_no_overlap
from medvol.io.label_names import Wanted, choose_structures, split_fragment
from medvol.io.read import read_volume
from medvol.io.reference import parse_reference

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of a segmentation, and of one as a label map."""

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True)
class LabelMap:
    """A label map and what its values mean.

    Args:
        volume: Whole numbers, (x, y, z); with a channel per structure at the end where asked for.
        names: Structure by value, as the file names it; empty for formats without names.
    """

    volume: Volume
    names: Mapping[int, str] = field(default_factory=dict)


def read_label(ref: str | PathLike[str], image: str | PathLike[str], *, resample: bool = False) -> LabelMap:
    """Read the label map that a reference names; one from DICOM on the grid of its image.

    Args:
        ref: A mask, or a SEG or RTSTRUCT file or a folder with one, with the structures behind `#`.
        image: Reference of the image, for SEG and RTSTRUCT.
        resample: Take the nearest voxel, or contour plane, where a SEG or RTSTRUCT does not lie on the image's voxels.

    Raises:
        MedvolError: `LABELS_OVERLAP`, `FRAME_MISMATCH`, `GEOMETRY_MISMATCH`, `NOT_FOUND`, `TILED_IMAGE`, `NO_GEOMETRY`,
            `SEVERAL_LABELS`, `BAD_REFERENCE`, `BAD_LABEL`, `NEED_CODEC`, `TRUNCATED`, `BAD_DICOM`, or what
            `read_volume` finds.
    """
    found = find_label(ref)
    if found is None:
        return LabelMap(read_volume(ref))
    canvas, wanted, target, notes = _paint(ref, found, image, resample=resample)
    require_no_overlap(canvas, wanted.names, found)
    volume = Volume(canvas.labels, target.affine, source=str(ref), notes=notes)
    return LabelMap(volume, wanted.names)


def read_label_channels(ref: str | PathLike[str], image: str | PathLike[str], *, resample: bool = False) -> LabelMap:
    """Read a SEG or RTSTRUCT whose structures may overlap: a channel each, (x, y, z, structure), uint8, 0 and 1.

    Channels follow the ascending values of `names`. Arguments and refusals are those of `read_label`, but for overlaps.
    """
    found = find_label(ref)
    if found is None:
        raise MedvolError(
            "BAD_LABEL", file=ref, found="no segmentation and no structure set", expected="a DICOM SEG or RTSTRUCT"
        )
    canvas, wanted, target, notes = _paint(ref, found, image, resample=resample, separate=True)
    return LabelMap(Volume(canvas.labels, target.affine, source=str(ref), channel_axis=3, notes=notes), wanted.names)


def find_label(ref: str | PathLike[str]) -> Path | None:
    """Return the SEG or RTSTRUCT file that a reference names, None when it names something else.

    Raises:
        MedvolError: `SEVERAL_LABELS` for a folder that leaves a choice, `NOT_FOUND`.
    """
    reference = parse_reference(ref)
    path = existing(reference.path)
    if not path.is_dir():
        return path if _identity(path)[0] in (*SEGMENTATIONS, STRUCTURE_SET) else None
    uid, _ = split_fragment(reference.key)
    known = [(file, _identity(file)) for file in walk_files(path)]
    labels = [(file, uids) for file, (kind, *uids) in known if kind in (*SEGMENTATIONS, STRUCTURE_SET)]
    chosen = [file for file, uids in labels if uid is None or uid in uids]
    has_images = len(labels) < sum(bool(kind) for _, (kind, *_) in known)
    if len(chosen) == 1 and (uid is not None or not has_images):
        return chosen[0]
    if not chosen:
        return None
    raise MedvolError(
        "SEVERAL_LABELS",
        file=path,
        found=f"{len(chosen)} segmentations or structure sets" + (" beside images" if has_images else ""),
        expected="one",
        fix="name the file, or folder#SeriesInstanceUID",
        details=[str(file) for file in chosen],
    )


def _identity(file: Path) -> tuple[str, str, str]:
    """Return SOP class, series and instance of a file; empty texts when it is no DICOM."""
    from pydicom import dcmread

    with dicom_errors(file), file.open("rb") as stream:
        if not is_dicom(stream.read(132)):
            return "", "", ""
        check_inflated_size(stream, file)
        stream.seek(0)
        names = ["SOPClassUID", "SeriesInstanceUID", "SOPInstanceUID"]
        dataset: Any = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=[*names])
        kind, series, instance = (str(dataset.get(name) or "") for name in names)
        return kind or "unknown", series, instance


def _paint(
    ref: str | PathLike[str], file: Path, image: str | PathLike[str], *, resample: bool, separate: bool = False
) -> tuple[Canvas, Wanted, Target, tuple[str, ...]]:
    """Return the painted structures, their values and names, the image's grid and notes."""
    from pydicom import dcmread

    _, listed = split_fragment(parse_reference(ref).key)
    target = target_of(image)
    with dicom_errors(file):
        with file.open("rb") as stream:
            check_inflated_size(stream, file)
        dataset = dcmread(file, force=True)
        if dataset.SOPClassUID == STRUCTURE_SET:
            from medvol.io.dicom_rtstruct import paint_structures as paint
            from medvol.io.dicom_rtstruct import structures_of

            available = [(one.number, one.name) for one in structures_of(dataset)]
        else:
            from medvol.io.dicom_seg import paint_segmentation as paint
            from medvol.io.dicom_seg_file import segments_of

            available = segments_of(dataset)
        wanted = choose_structures(available, listed, file)
        canvas, notes = paint(dataset, file, target, wanted.values, resample=resample, separate=separate)
    return canvas, wanted, target, wanted.notes + notes
