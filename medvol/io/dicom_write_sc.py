"""A picture, as a page of a report, as a DICOM secondary capture in the study of its source.

The picture must be free of names: it is marked as derived and as made by nobody's scanner, and says that no annotation
is burned in only because the caller vouches for it. It states neither side nor direction, which a page does not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.atomic import write_atomically
from medvol.io.dicom_source import DicomSource, source_references, writing
from medvol.io.dicom_write_seg import Algorithm, WrittenObject, series_facts, written_object


def write_picture(
    path: str | Path,
    picture: npt.NDArray[np.uint8],
    source: DicomSource,
    *,
    algorithm: Algorithm,
    names_the_patient: bool,
    description: str = "page",
) -> WrittenObject:
    """Write an RGB picture as a secondary capture, atomically.

    Args:
        path: File to write.
        picture: Shape (rows, columns, 3), uint8.
        source: Whose patient and study it belongs to, from `dicom_source`.
        algorithm: What made it.
        names_the_patient: Whether a name, a number or a date of the patient is drawn into it (BurnedInAnnotation).
        description: Of the series, behind the algorithm's name.

    Raises:
        MedvolError: `WRONG_ARRAY`, `NEED_PACKAGE`, `DISK_FULL`, `CANNOT_WRITE`.
    """
    is_rgb = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.dtype(np.uint8)
    if not is_rgb or not 0 < min(picture.shape) <= max(picture.shape) < 2**16:
        found = f"an array of shape {picture.shape} and type {picture.dtype}"
        raise MedvolError("WRONG_ARRAY", file=path, found=found, expected="(rows, columns, 3) of uint8")
    with writing(path):
        dataset = _capture(picture, source, algorithm, description)
        dataset.BurnedInAnnotation = "YES" if names_the_patient else "NO"
    write_atomically(path, lambda stream: dataset.save_as(stream, enforce_file_format=True))
    return written_object(path, dataset)


def _capture(picture: npt.NDArray[np.uint8], source: DicomSource, algorithm: Algorithm, description: str) -> Any:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = hd.sc.SCImage.from_ref_dataset(
        source.header,
        pixel_array=np.ascontiguousarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom wants one; taken out again below
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **series_facts(source, algorithm, 3, description),
    )
    dataset.copy_patient_and_study_information(source.header)
    dataset.PatientOrientation = []
    dataset.Laterality = ""  # must be there where no body part is named, and may be empty
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SourceImageSequence = source_references(source)
    return dataset
