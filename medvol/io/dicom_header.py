"""One DICOM image's header, reduced to what decides where its voxels lie and what they mean.

No name, date or identifier of a patient is kept: only a digest that differs between patients. An *image* is a file of
one slice, or one frame of an enhanced multi-frame file; both are a `SliceHeader`, and nothing behind this module needs
to tell them apart.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.io.dicom_file import check_inflated_size, dicom_errors, pixel_place, truncated
from medvol.io.dicom_stored import Numbers, Stored, numbers, stored_of, whole
from medvol.io.dicom_tags import FILE_TAGS, PHILIPS_TAGS, file_tags, philips_scale
from medvol.io.dicom_walk import walk_header

_SIEMENS_CREATOR, _MOSAIC_COUNT = 0x00190010, 0x0019100A  # NumberOfImagesInMosaic
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "SeriesDescription", "SeriesNumber", "InstanceNumber", "ImageType", "LossyImageCompression"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "ImagerPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionOrganizationType"),
    *("ConcatenationUID", "ImagesInAcquisition", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RealWorldValueMappingSequence", *PHILIPS_TAGS, _SIEMENS_CREATOR, _MOSAIC_COUNT),
    *("PatientID", "PatientName"),
)

_WANTED = (*_TAGS, *FILE_TAGS)


@dataclass(frozen=True)
class SliceHeader:
    """What one slice, a file or a frame of one, says about itself.

    Args:
        path: The file.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        frame_uid: Frame of Reference UID, empty in many anonymised studies.
        instance_uid: SOP Instance UID.
        modality: As `CT`.
        description: Series description.
        number: Series number, None when there is none.
        instance: Instance number; used in notes only, never for the order.
        image_type: Values of Image Type.
        size: Rows and columns.
        frames: Frames in the file.
        is_enhanced: Whether it has functional groups.
        photometric: Photometric interpretation.
        stored: How the pixels stand in the file.
        syntax: Transfer syntax UID, empty when the file states none.
        spacing: Row spacing and column spacing in millimetres.
        detector_spacing: The same at the detector, for a projection; no size in the patient.
        thickness: Slice thickness in millimetres.
        position: Image Position (Patient), LPS millimetres.
        orientation: Image Orientation (Patient): direction of a row, direction of a column.
        rescale: Slope and intercept.
        has_lut: Whether a modality look-up table replaces the rescale.
        is_lossy: Whether lossy compression was applied at any time.
        is_capture: Whether the SOP class is a secondary capture.
        expected_count: Images In Acquisition, None when absent; used in notes only.
        tags: Name and value of what may tell volumes of one series apart, see `medvol.io.dicom_tags`.
        frame: Index of the frame in its file.
        scale: Philips' private scale slope, None where there is none.
        has_real_world: Whether a real world value map gives other values than the rescale.
        problem: Why the voxels cannot be read, if they cannot.
        patient: Digest of the Patient ID, or of the name where there is none; compared, never shown.
    """

    path: Path
    study_uid: str
    series_uid: str
    frame_uid: str
    instance_uid: str
    modality: str
    description: str
    number: int | None
    instance: int | None
    image_type: tuple[str, ...]
    size: tuple[int, int]
    frames: int
    is_enhanced: bool
    photometric: str
    stored: Stored
    syntax: str
    spacing: Numbers | None
    detector_spacing: Numbers | None
    thickness: float | None
    position: Numbers | None
    orientation: Numbers | None
    rescale: tuple[float, float]
    has_lut: bool
    is_lossy: bool
    is_capture: bool
    expected_count: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    frame: int = 0
    scale: float | None = None
    has_real_world: bool = False
    problem: MedvolError | None = None
    patient: str = ""

    @property
    def name(self) -> str:
        """File name, with the frame where the file has several."""
        return self.path.name if self.frames == 1 else f"{self.path.name} frame {self.frame + 1}"


def is_dicom(head: bytes) -> bool:
    """Tell from a file's first 132 bytes whether it is DICOM, also without preamble."""
    if head[128:132] == b"DICM":
        return True
    # Without preamble the first element is of group 2 or 8: little or big endian, then a VR or a small length.
    is_group = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\0"
    is_big_group = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\0"
    if len(head) < 16 or not (is_group or is_big_group):
        return False
    return (head[4:6].isalpha() and head[4:6].isupper()) or (is_group and struct.unpack("<I", head[4:8])[0] <= 1024)


def is_dicom_file(path: Path) -> bool:
    """Tell from a file's beginning whether it is DICOM."""
    with path.open("rb") as stream:
        return is_dicom(stream.read(132))


def read_slice_headers(path: Path) -> tuple[SliceHeader, ...]:
    """Read the headers of the slices in a DICOM file; none when it holds no image (a report, a segmentation).

    Raises:
        MedvolError: `BAD_DICOM`, `TRUNCATED` or `TOO_LARGE`, when the header itself cannot be read.
    """
    from pydicom import dcmread

    with dicom_errors(path), path.open("rb") as stream:
        dataset: Any = walk_header(stream, _WANTED)
        # Functional groups are nested and long: pydicom reads them.
        if dataset is None or "Enhanced" in _class_name(dataset) or "SharedFunctionalGroupsSequence" in dataset:
            check_inflated_size(stream, path)
            dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=list(_WANTED))
        kind = _class_name(dataset)
        if "Rows" not in dataset:
            if not kind or "Image Storage" in kind:
                raise truncated(path, f"a header that ends after {path.stat().st_size:,} bytes", "Rows and Columns")
            return ()
        if kind and "Image Storage" not in kind:
            return ()
        is_enhanced = "Enhanced" in kind or "SharedFunctionalGroupsSequence" in dataset
        place, problem = pixel_place(dataset, stream, path)
        header = _slice_header(dataset, path, place, problem or _refusal(dataset, path), is_enhanced=is_enhanced)
        if not is_enhanced:
            return (header,)
        from medvol.io.dicom_frames import expand

        return expand(dataset, header)


def _slice_header(
    dataset: Any, path: Path, place: tuple[int, int], problem: MedvolError | None, *, is_enhanced: bool
) -> SliceHeader:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "")

    thickness = numbers(dataset, "SliceThickness", 1)
    slope, intercept = numbers(dataset, "RescaleSlope", 1), numbers(dataset, "RescaleIntercept", 1)
    return SliceHeader(
        path=path,
        study_uid=text("StudyInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        frame_uid=text("FrameOfReferenceUID"),
        instance_uid=text("SOPInstanceUID"),
        modality=text("Modality"),
        description=text("SeriesDescription"),
        number=whole(dataset, "SeriesNumber"),
        instance=whole(dataset, "InstanceNumber"),
        image_type=_texts(dataset.get("ImageType")),
        size=(int(dataset.Rows), int(dataset.get("Columns") or 0)),
        frames=whole(dataset, "NumberOfFrames") or 1,
        is_enhanced=is_enhanced,
        photometric=text("PhotometricInterpretation"),
        stored=stored_of(dataset, place),
        syntax=str(getattr(dataset.file_meta, "TransferSyntaxUID", "")),
        spacing=numbers(dataset, "PixelSpacing", 2),
        detector_spacing=numbers(dataset, "ImagerPixelSpacing", 2),
        thickness=thickness[0] if thickness else None,
        position=numbers(dataset, "ImagePositionPatient", 3),
        orientation=numbers(dataset, "ImageOrientationPatient", 6),
        rescale=(slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
        has_lut="ModalityLUTSequence" in dataset,
        is_lossy=text("LossyImageCompression") == "01",
        is_capture="Secondary Capture" in _class_name(dataset),
        expected_count=whole(dataset, "ImagesInAcquisition"),
        tags=file_tags(dataset),
        scale=philips_scale(dataset),
        has_real_world="RealWorldValueMappingSequence" in dataset,
        problem=problem,
        patient=hashlib.sha256((text("PatientID").strip() or text("PatientName")).encode()).hexdigest()[:16],
    )


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(one).strip() for one in ([value] if isinstance(value, str) else value))


def _class_name(dataset: Any) -> str:
    """Return the name of the SOP class, empty when it is missing or private."""
    return _uid_name(str(dataset.get("SOPClassUID") or getattr(dataset.file_meta, "MediaStorageSOPClassUID", "")))


@lru_cache(maxsize=256)
def _uid_name(text: str) -> str:
    from pydicom.uid import UID

    uid = UID(text)
    return "" if uid.is_private or uid.name == uid else str(uid.name)


def _counts_mosaic(dataset: Any) -> bool:
    """Tell whether the private attribute is Siemens' number of images in a mosaic, and not another vendor's."""
    creator = dataset.get(_SIEMENS_CREATOR)
    creator = getattr(creator, "value", creator)
    creator = creator.decode("latin-1") if isinstance(creator, bytes) else str(creator or "SIEMENS")
    return _MOSAIC_COUNT in dataset and creator.startswith("SIEMENS")


def _refusal(dataset: Any, path: Path) -> MedvolError | None:
    """Return a refusal by name of what no header makes a stack of slices."""
    kinds: Sequence[tuple[str, bool, str, str]] = (
        (
            "SIEMENS_MOSAIC",
            "MOSAIC" in _texts(dataset.get("ImageType")) or _counts_mosaic(dataset),
            "a mosaic of slices",
            "convert it with dcm2niix",
        ),
        (
            "TILED_IMAGE",
            "TILED" in str(dataset.get("DimensionOrganizationType")),
            "tiles of one large image",
            "use a reader of whole-slide images",
        ),
    )
    for code, applies, found, fix in kinds:
        if applies:
            return MedvolError(code, file=path, found=found, expected="one grey slice per file or frame", fix=fix)
    return None
