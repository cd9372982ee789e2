"""The DICOM series that a volume was read from, as what is written about it must refer to it.

Results belong to the patient, the study and the frame of reference of their source, so those parts of its header are
kept, in memory alone, cleaned of what no file may be written with: an empty character set, values that break their
type, private elements. Nothing of it is ever logged. A series without a frame of reference gets one that follows from
its UID, so that all results of the series share it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, apply_affine, lps_to_ras, spacing_mm
from medvol.io.dicom_file import dicom_errors
from medvol.io.dicom_geometry import Arranged, arrange
from medvol.io.dicom_groups import choose_group, scan
from medvol.io.dicom_header import Numbers, SliceHeader, is_dicom_file
from medvol.io.dicom_select import parse_selection
from medvol.io.dicom_target import GRID_TOLERANCE
from medvol.io.dicom_volumes import only_volume
from medvol.io.dicom_walk import walk_header
from medvol.io.files import existing
from medvol.io.options import ReadOptions, with_texts
from medvol.io.reference import parse_reference

_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that every object of a study must have and that may be empty."""

_DROPPED = ("SpecificCharacterSet", "NumberOfFrames", "Laterality")
"""An empty character set is what some writers leave; a result is written as UTF-8. A page has no side."""

_NESTED_OR_BYTES = ("SQ", "UN", "OB", "OW", "OF", "OD", "OL", "OV")
_PIXEL_GROUP = 0x0028
_UID = re.compile(r"[0-9.]{3,64}")


@dataclass(frozen=True)
class DicomSource:
    """A series as the source of results.

    Args:
        reference: What was read.
        arranged: Its slices in the order of the volume, and their affine.
        header: The first slice's header, cleaned.
        classes: SOP class of each slice.
    """

    reference: str
    arranged: Arranged
    header: Any = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    @property
    def slices(self) -> tuple[SliceHeader, ...]:
        """Slices in the order of the volume's third axis."""
        return self.arranged.slices

    @property
    def affine(self) -> Affine:
        """(column, row, slice) index to RAS+ millimetres."""
        return self.arranged.affine

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, planes."""
        rows, columns = self.slices[0].size
        return columns, rows, len(self.planes)

    @cached_property
    def planes(self) -> tuple[tuple[int, Numbers], ...]:
        """Index of the slice of each plane, the nearest where planes were interpolated, and its position in LPS."""
        between = self.arranged.planes
        if between is None:
            return tuple((index, one.position or ()) for index, one in enumerate(self.slices))
        lps = lps_to_ras(self.affine)  # the same flip leads both ways
        nearest = np.rint(between).astype(int).tolist()
        return tuple((index, tuple((lps[:3, 3] + k * lps[:3, 2]).tolist())) for k, index in enumerate(nearest))

    @property
    def modality(self) -> str:
        """As `CT`."""
        return self.slices[0].modality

    @cached_property
    def instances(self) -> tuple[tuple[str, str], ...]:
        """SOP class and instance UID of each file, none twice."""
        uids = (one.instance_uid for one in self.slices)
        return tuple(dict.fromkeys(zip(self.classes, uids, strict=True)))


def is_dicom_reference(ref: str | PathLike[str]) -> bool:
    """Tell whether a reference names DICOM: a folder, or a file that begins as DICOM does.

    Raises:
        MedvolError: `NOT_FOUND` or `BAD_REFERENCE`.
    """
    path = existing(parse_reference(ref).path)
    return path.is_dir() or is_dicom_file(path)


def dicom_source(ref: str | PathLike[str]) -> DicomSource:
    """Return the series that a reference names, by its headers.

    Raises:
        MedvolError: `NOT_DICOM` for another format, `NO_UID` for a header without the identifiers that a result must
            name, or what reading the series finds.
    """
    if not is_dicom_reference(ref):
        raise not_dicom(ref)
    reference = parse_reference(ref)
    path = reference.path
    selection = parse_selection(reference.key, path)
    group, _ = choose_group(scan(path), path, selection)
    slices = only_volume(group, selection, path).slices
    if slices[0].position is None and len(slices) == 1:
        arranged = Arranged(slices, np.eye(4), ())  # a single picture, as of a 2D study
    else:
        arranged = arrange(slices, with_texts(ReadOptions(), selection.options, path))
    for one in arranged.slices:
        _require_uids(one)
    with dicom_errors(arranged.slices[0].path):
        classes = _classes(arranged.slices)
        header = _cleaned(arranged.slices[0])
    return DicomSource(reference.text, arranged, header, classes)


def source_references(source: DicomSource) -> list[Any]:
    """Return an item for each file of a source, which names it by class and instance."""
    from pydicom.dataset import Dataset

    references = []
    for class_uid, instance_uid in source.instances:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = class_uid, instance_uid
        references.append(reference)
    return references


def not_dicom(ref: str | PathLike[str], case: str = "") -> MedvolError:
    """Return the refusal of a source of another format."""
    return MedvolError(
        "NOT_DICOM",
        case=case,
        file=ref,
        found="a source that is not DICOM, which a DICOM result must refer to",
        expected="a DICOM series",
        fix="""predict from the DICOM files, or pass --output_formats "['nifti']" """.strip(),
    )


def on_source_grid(labels: npt.NDArray[Any], affine: Affine, source: DicomSource) -> npt.NDArray[Any]:
    """Return labels as (column, row, slice) of a series: a view, its axes permuted and flipped as the affines say.

    Args:
        labels: Shape (x, y, z), perhaps with further axes behind.
        affine: Voxel index to RAS+ millimetres.
        source: Whose voxels these must be, all of them, within a tenth of a voxel.

    Raises:
        MedvolError: `GEOMETRY_MISMATCH` with the distance.
    """
    matrix = np.linalg.inv(affine) @ source.affine  # source index to label index
    axes = np.abs(matrix[:3, :3]).argmax(axis=0)
    shape = tuple(labels.shape[axis] for axis in axes) if labels.ndim >= 3 else ()
    if len(set(axes.tolist())) < 3 or shape != source.shape:
        raise _mismatch(f"labels of {' x '.join(map(str, labels.shape))} voxels", source)
    view = np.transpose(labels, (*axes.tolist(), *range(3, labels.ndim)))
    flips = [bool(matrix[axis, column] < 0) for column, axis in enumerate(axes)]
    view = view[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    corners = np.array(np.meshgrid(*[(0.0, length - 1.0) for length in source.shape])).reshape(3, -1).T
    index = np.where(flips, np.array(source.shape) - 1 - corners, corners)
    there = np.empty_like(index)
    there[:, axes] = index
    apart = np.linalg.norm(apply_affine(affine, there) - apply_affine(source.affine, corners), axis=1).max()
    if apart > GRID_TOLERANCE * spacing_mm(source.affine).min():
        raise _mismatch(f"labels up to {apart:.3g} mm beside the series' voxels", source)
    return view


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what highdicom raises into a refusal, and keep its warnings, which may quote a patient, out of logs.

    Raises:
        MedvolError: `CANNOT_WRITE`, naming the kind of exception alone, for its text may quote the header too;
            `NEED_PACKAGE` without highdicom.
    """
    logger = logging.getLogger("highdicom")  # its modules' loggers take the level from it
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with dicom_errors(Path(path)):
            yield
    except MedvolError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError) and "highdicom" in str(cause.name):
            raise MedvolError(
                "NEED_PACKAGE", found="highdicom is not installed", fix="pip install 'medvol-monai[dicom]' brings it"
            ) from cause
        if error.code != "BAD_DICOM":
            raise
        raise MedvolError(
            "CANNOT_WRITE",
            file=path,
            found=f"the source's header allows no such object ({type(cause).__name__})",
            fix="export the source series again",
        ) from cause
    finally:
        logger.setLevel(level)


def _classes(slices: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Return the SOP class of each slice; where the object lacks it, the head of its file repeats it.

    Raises:
        MedvolError: `NO_UID`.
    """
    from pydicom import dcmread

    known: dict[Path, str] = {}
    for one in slices:
        if one.path not in known:
            with one.path.open("rb") as stream:
                found: Any = walk_header(stream, ("SOPClassUID",))
                if found is None:
                    found = dcmread(one.path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            head = getattr(found, "file_meta", None)
            known[one.path] = str(found.get("SOPClassUID") or getattr(head, "MediaStorageSOPClassUID", ""))
            if not _UID.fullmatch(known[one.path]):
                raise _no_uid(one.path, "SOPClassUID")
    return tuple(known[one.path] for one in slices)


def _cleaned(first: SliceHeader) -> Any:
    """Return the header of a file as a slice that stands alone, without what may not be written again."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    dataset = dcmread(first.path, force=True, stop_before_pixels=True)
    dataset.decode()
    header = Dataset()
    for element in dataset:
        if _may_be_written(element):
            header.add(element)
    for name in _DROPPED:
        header.pop(name, None)
    for name in _EMPTY:
        header.setdefault(name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=["medvol", first.series_uid, "frame"])
    return header


def _may_be_written(element: Any) -> bool:
    """Tell whether an element is a plain public value that keeps to its type."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    if element.tag.is_private or element.tag.group == _PIXEL_GROUP or element.VR in _NESTED_OR_BYTES:
        return False
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, value, config.RAISE)
    except (ValueError, TypeError):
        return False
    return True


def _require_uids(one: SliceHeader) -> None:
    uids = {"Study": one.study_uid, "Series": one.series_uid, "SOP": one.instance_uid}
    missing = [f"{name}InstanceUID" for name, uid in uids.items() if not _UID.fullmatch(uid)]
    if missing:
        raise _no_uid(one.path, missing[0])


def _no_uid(path: Path, name: str) -> MedvolError:
    return MedvolError(
        "NO_UID",
        file=path,
        found=f"no {name}",
        expected="study, series, class and instance UIDs, by which a result refers to its source",
        fix="export or anonymise the series again, keeping them",
    )


def _mismatch(found: str, source: DicomSource) -> MedvolError:
    return MedvolError(
        "GEOMETRY_MISMATCH",
        file=source.reference,
        found=found,
        expected=f"the series' own {' x '.join(map(str, source.shape))} voxels, in any order of the axes",
        fix="resample the labels onto the series",
    )
