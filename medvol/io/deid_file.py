"""One DICOM object without its patient: read, refused or cleaned, and written anew from its elements alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medvol.errors import MedvolError
from medvol.io.deid_attributes import Cleaning, clean
from medvol.io.deid_diffusion import keep_diffusion
from medvol.io.deid_key import days_earlier, hashed_uid
from medvol.io.deid_pixels import require_known_object, require_safe_pixels, tidy_pixels
from medvol.io.deid_profile import Profile
from medvol.io.dicom_file import check_inflated_size, dicom_errors
from medvol.io.dicom_scan import identity_of, pseudonym

IMPLEMENTATION_UID = "2.25.229683340236462943406421466146410279113"
"""Names medvol as the writer of a file (PS3.10 7.1)."""

_HEADS = (
    "HEAD",
    "SKULL",
    "BRAIN",
    "FACE",
    "ORBIT",
    "SINUS",
    "NECK",
    "CAROTID",
    "JAW",
    "EAR",
    "EYE",
    "TMJ",
    "PITUITARY",
)
_FACES = ("CT", "MR")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

_BASIC, _MODIFIED_DATES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)


@dataclass(frozen=True)
class DeidOptions:
    """What is kept and what is let through.

    Args:
        key: Secret that pseudonyms, UIDs and offsets depend on.
        shift_dates: Move dates back, by as many days for all of a patient's files, instead of removing them.
        allow_pixels: Take pixels that may show text, and colour.
        keep_structure_names: Leave names of regions of interest as they are, unless they hold an identifier.
    """

    key: bytes
    shift_dates: bool = False
    allow_pixels: bool = False
    keep_structure_names: bool = False


@dataclass(frozen=True)
class Deidentified:
    """A cleaned object.

    Args:
        data: The file.
        place: `pseudonym/study/series/instance.dcm`, UIDs hashed.
        swept: Texts that held an identifier although no rule names their attribute.
        may_show_face: Whether it is CT or MR of a head, or does not say of what.
    """

    data: bytes
    place: PurePosixPath
    swept: int
    may_show_face: bool

    @property
    def series(self) -> PurePosixPath:
        """Folder of the series."""
        return self.place.parent


def deidentify_file(path: Path, options: DeidOptions, profile: Profile) -> Deidentified:
    """Return a DICOM object without what identifies its patient.

    The transfer syntax and the stored pixel values stay. Preamble and file meta information are made anew.

    Raises:
        MedvolError: `BAD_DICOM`, `TRUNCATED`, `TOO_LARGE`, `UNSAFE_OBJECT`, `PIXELS_AT_RISK`, `NO_UID`.
    """
    with dicom_errors(path):
        dataset = _read(path)
        require_known_object(dataset, path)
        if not options.allow_pixels:
            require_safe_pixels(dataset, path)
        tidy_pixels(dataset, path)
        uids = _uids(dataset, path)
        who = identity_of(dataset)
        days = days_earlier(who, options.key) if options.shift_dates else None
        may_show_face = _may_show_face(dataset)
        keep_diffusion(dataset)
        swept = clean(dataset, Cleaning(profile, options.key, days, options.keep_structure_names))
        name = pseudonym(who, options.key)
        _mark(dataset, name, profile, has_dates=options.shift_dates)
        study, series, instance = (hashed_uid(uid, options.key) for uid in uids)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = study, series, instance
        return Deidentified(
            _written(dataset), PurePosixPath(name, study, series, f"{instance}.dcm"), swept, may_show_face
        )


def _read(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with path.open("rb") as stream:
        check_inflated_size(stream, path)
        dataset = dcmread(stream, force=True)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if dataset.file_meta.TransferSyntaxUID.is_private:
        raise MedvolError(
            "BAD_DICOM",
            file=path,
            found="a private transfer syntax",
            expected="one that DICOM defines",
            fix="export the file again",
        )
    return dataset


def _uids(dataset: Any, path: Path) -> list[str]:
    uids = [str(dataset.get(name) or "").strip() for name in _UIDS]
    if not all(uids):
        missing = ", ".join(name for name, uid in zip(_UIDS, uids, strict=True) if not uid)
        raise MedvolError("NO_UID", file=path, found=f"{missing} is empty", expected="study, series and instance UIDs")
    return uids


def _may_show_face(dataset: Any) -> bool:
    part = str(dataset.get("BodyPartExamined") or "").upper()
    return str(dataset.get("Modality") or "") in _FACES and (not part or any(word in part for word in _HEADS))


def _mark(dataset: Any, name: str, profile: Profile, *, has_dates: bool) -> None:
    """State the pseudonym, and what was done, as PS3.15 E.1 asks."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = dataset.PatientID = name
    dataset.PatientIdentityRemoved = "YES"
    dates = "dates moved" if has_dates else "dates removed"
    dataset.DeidentificationMethod = ["medvol deid", f"PS3.15 {profile.name} basic profile", dates]
    items = []
    for value, meaning in (_BASIC, _MODIFIED_DATES)[: 1 + has_dates]:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if has_dates else "REMOVED"


def _written(dataset: Any) -> bytes:
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = "MEDVOL"
    dataset.file_meta = meta
    dataset.preamble = bytes(128)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
