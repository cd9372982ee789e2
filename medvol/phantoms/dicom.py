"""A volume as a plain DICOM series: one classic CT or MR file per slice, complete enough for every reader we know.

Slices lie across the third voxel axis. Rows and columns must be at a right angle; the stack itself may lean, which is
what a gantry tilt is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import SHEAR_TOLERANCE, Affine, Volume, lps_to_ras
from medvol.phantoms.grid import bad_argument

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SOP_CLASS = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}

_OF_MODALITY: dict[str, dict[str, Any]] = {
    "CT": {"KVP": "120", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "RescaleType": "HU"},
    "MR": {
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "RepetitionTime": "10",
        "EchoTime": "4",
        "EchoTrainLength": "1",
        "RescaleType": "US",
    },
}


@dataclass(frozen=True)
class Identity:
    """Who and what a series says it is.

    UIDs are hashes: study and frame of reference of patient and study, series and instances of the voxels too.

    Args:
        patient: Patient ID, also the family name; synthetic.
        study: Tells studies of a patient apart.
        series_number: Tells series of a study apart.
        description: Series description.
        modality: "CT" or "MR".
    """

    patient: str = "phantom"
    study: str = "1"
    series_number: int = 1
    description: str = "phantom"
    modality: str = "CT"

    def __post_init__(self) -> None:
        if self.modality not in _SOP_CLASS:
            raise bad_argument(f"modality '{self.modality}'", "CT or MR")
        if len(self.patient) > 60 or len(self.description) > 64 or len(self.study) > 16:
            raise bad_argument("a text longer than its DICOM field", "patient <= 60, description <= 64, study <= 16")


@dataclass(frozen=True)
class _Stored:
    """16-bit pixels and how they become intensities: `pixels * slope + intercept`."""

    pixels: npt.NDArray[np.uint16]
    slope: float
    intercept: float


def write_dicom_series(
    volume: Volume, folder: str | PathLike[str], *, identity: Identity | None = None
) -> tuple[Path, ...]:
    """Write a volume as one DICOM file per slice, `IM0001.dcm` and so on along the third axis.

    Whole numbers within 16 bits are stored exactly, with slope 1; other intensities are spread over 65,536 steps.

    Args:
        volume: Shape (x, y, z) with an affine.
        folder: Made when absent.
        identity: Patient, study, series and modality.

    Returns:
        The files, first slice first.

    Raises:
        MedvolError: BAD_ARGUMENT for another shape or values that are not finite, SHEARED when rows and columns are not
            at a right angle.
    """
    who = Identity() if identity is None else identity
    if volume.array.ndim != 3 or not np.isfinite(volume.array).all():
        raise bad_argument(f"an array of shape {volume.array.shape}", "(x, y, z), all values finite")
    lps = lps_to_ras(volume.affine)  # the same flip leads both ways
    stored = _stored(volume.array)
    content = hashlib.sha256(stored.pixels.tobytes() + lps.tobytes()).hexdigest()
    common = _common(who, lps, stored, content)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    return tuple(
        _write_slice(common, stored, lps, index, place / f"IM{index + 1:04d}.dcm")
        for index in range(volume.array.shape[2])
    )


def _stored(array: npt.NDArray[Any]) -> _Stored:
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if high - low <= 65535 and (values == np.rint(values)).all():
        # CT scanners store HU + 1024; whatever lies lower, as padding does, shifts the intercept.
        intercept = min(-1024.0, low) if low < 0 else 0.0
        intercept = intercept if high - intercept <= 65535 else low
        return _Stored((values - intercept).astype(np.uint16), 1.0, intercept)
    # Readers get the numbers that fit into the 16 characters of the file, so the pixels must be made with these.
    slope, intercept = _as_written((high - low) / 65535 or 1.0), _as_written(low)
    return _Stored(np.clip(np.rint((values - intercept) / slope), 0, 65535).astype(np.uint16), slope, intercept)


def _common(who: Identity, lps: Affine, stored: _Stored, content: str) -> Dataset:
    """Return the attributes that all slices share."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    column_step, row_step = lps[:3, 0], lps[:3, 1]
    column_mm, row_mm = float(np.linalg.norm(column_step)), float(np.linalg.norm(row_step))
    along_row, along_column = column_step / column_mm, row_step / row_mm
    if abs(float(along_row @ along_column)) > SHEAR_TOLERANCE:
        raise MedvolError("SHEARED", found="rows and columns are not at a right angle", fix="resample the volume")
    normal = np.cross(along_row, along_column)
    seed = ["medvol", who.patient, who.study]
    series = [*seed, str(who.series_number), who.modality, who.description, content]

    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    common.SOPClassUID = _SOP_CLASS[who.modality]
    common.StudyInstanceUID = generate_uid(entropy_srcs=[*seed, "study"])
    common.SeriesInstanceUID = generate_uid(entropy_srcs=[*series, "series"])
    common.FrameOfReferenceUID = generate_uid(entropy_srcs=[*seed, "frame"])
    common.PatientName = f"{who.patient}^phantom"
    common.PatientID = who.patient
    common.StudyID = who.study
    common.SeriesNumber = who.series_number
    common.SeriesDescription = who.description
    common.Modality = who.modality
    common.Manufacturer = "medvol"
    common.PatientPosition = "HFS"
    common.SamplesPerPixel = 1
    common.PhotometricInterpretation = "MONOCHROME2"
    common.Columns, common.Rows = stored.pixels.shape[:2]
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit = 15
    common.PixelRepresentation = 0
    common.PixelSpacing = [_written(row_mm), _written(column_mm)]
    common.SliceThickness = _written(abs(float(normal @ lps[:3, 2])))
    common.ImageOrientationPatient = [_written(x) for x in (*along_row, *along_column)]
    common.RescaleSlope, common.RescaleIntercept = _written(stored.slope), _written(stored.intercept)
    for keyword, value in _OF_MODALITY[who.modality].items():
        setattr(common, keyword, value)
    # Attributes that must be there and may be empty.
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"):
        setattr(common, keyword, "")
    for keyword in ("PatientSex", "AcquisitionNumber", "PositionReferenceIndicator"):
        setattr(common, keyword, "")
    return common


def _write_slice(common: Dataset, stored: _Stored, lps: Affine, index: int, path: Path) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    pixels = np.ascontiguousarray(stored.pixels[:, :, index].T)  # rows run along y
    one = Dataset()
    one.update(common)  # shares the elements, so what differs by slice must not be among them
    one.SOPInstanceUID = generate_uid(entropy_srcs=[str(common.SeriesInstanceUID), str(index)])
    one.InstanceNumber = index + 1
    one.ImagePositionPatient = [_written(x) for x in lps[:3, 3] + index * lps[:3, 2]]
    one.PixelData = pixels.astype("<u2").tobytes()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = common.SOPClassUID
    meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta = meta
    one.save_as(path, enforce_file_format=True)
    return path


def _written(value: float) -> str:
    """Return a number in the at most 16 characters of a decimal string."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)  # turns -0.0 into 0.0


def _as_written(value: float) -> float:
    return float(_written(value))
