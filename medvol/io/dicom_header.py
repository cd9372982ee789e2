"""One DICOM file's header, reduced to what decides where its voxels lie and what they mean.

No name, date or identifier of a patient is read. Whatever pydicom raises on a damaged file becomes one refusal with the
file's name.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medvol.errors import MedvolError

INFLATE_LIMIT = 1 << 30
"""Most bytes that a deflated DICOM file may expand to; a real one holds tens of megabytes."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "SeriesDescription", "SeriesNumber", "InstanceNumber", "ImageType", "LossyImageCompression"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "SharedFunctionalGroupsSequence"),
    *("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"),
)

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class SliceHeader:
    """What one image file says about itself.

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
        bits: Bits allocated.
        spacing: Row spacing and column spacing in millimetres.
        thickness: Slice thickness in millimetres.
        position: Image Position (Patient), LPS millimetres.
        orientation: Image Orientation (Patient): direction of a row, direction of a column.
        rescale: Slope and intercept.
        has_lut: Whether a modality look-up table replaces the rescale.
        is_lossy: Whether lossy compression was applied at any time.
        problem: Why the voxels cannot be read, if they cannot.
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
    bits: int
    spacing: Numbers | None
    thickness: float | None
    position: Numbers | None
    orientation: Numbers | None
    rescale: tuple[float, float]
    has_lut: bool
    is_lossy: bool
    problem: MedvolError | None = None


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


def read_slice_header(path: Path) -> SliceHeader | None:
    """Read the header of a DICOM file; None when it holds no image (a report, a structure set, a segmentation).

    Raises:
        MedvolError: `BAD_DICOM`, `TRUNCATED` or `TOO_LARGE`, when the header itself cannot be read.
    """
    from pydicom import dcmread

    with dicom_errors(path), path.open("rb") as stream:
        check_inflated_size(stream, path)
        dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
        kind = _class_name(dataset)
        if "Rows" not in dataset:
            if not kind or "Image Storage" in kind:
                raise _truncated(path, f"a header that ends after {path.stat().st_size:,} bytes", "Rows and Columns")
            return None
        if kind and "Image Storage" not in kind:
            return None
        # Some writers leave out the shared groups and keep the per-frame ones, which are long to parse.
        is_enhanced = "Enhanced" in kind or "SharedFunctionalGroupsSequence" in dataset
        return _slice_header(dataset, path, _pixel_problem(dataset, stream, path), is_enhanced=is_enhanced)


@contextmanager
def dicom_errors(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises into a refusal, and keep its warnings, which quote values, out of logs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MedvolError:
        raise
    except OSError as error:
        from medvol.io.files import cannot_read

        if error.errno is not None:
            raise cannot_read(path, error) from error
        raise _bad(path, error) from error
    except Exception as error:  # damage meets AttributeError, TypeError, ValueError, RecursionError, ...
        raise _bad(path, error) from error


def check_inflated_size(stream: BinaryIO, path: Path) -> None:
    """Refuse a deflated file that would expand beyond the limit; pydicom expands it in one piece.

    Raises:
        MedvolError: `TOO_LARGE`.
    """
    head = stream.read(2048)
    stream.seek(0)
    if _DEFLATED not in head:
        return
    from pydicom.filereader import read_file_meta_info

    length = int(read_file_meta_info(path).FileMetaInformationGroupLength)
    stream.seek(128 + 4 + 12 + length)
    decoder, seen = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = stream.read()
    while data and not decoder.eof:
        seen += len(decoder.decompress(data, 1 << 22))
        data = decoder.unconsumed_tail
        if seen > INFLATE_LIMIT:
            raise MedvolError(
                "TOO_LARGE",
                file=path,
                found=f"more than {INFLATE_LIMIT:,} bytes when inflated",
                expected="at most that for one file",
                fix="do not trust this file",
            )
    stream.seek(0)


def _slice_header(dataset: Any, path: Path, problem: MedvolError | None, *, is_enhanced: bool) -> SliceHeader:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "")

    def whole(keyword: str) -> int | None:
        value = dataset.get(keyword)
        return None if value in (None, "") else int(value)

    thickness = _numbers(dataset, "SliceThickness", 1)
    slope, intercept = _numbers(dataset, "RescaleSlope", 1), _numbers(dataset, "RescaleIntercept", 1)
    return SliceHeader(
        path=path,
        study_uid=text("StudyInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        frame_uid=text("FrameOfReferenceUID"),
        instance_uid=text("SOPInstanceUID"),
        modality=text("Modality"),
        description=text("SeriesDescription"),
        number=whole("SeriesNumber"),
        instance=whole("InstanceNumber"),
        image_type=_texts(dataset.get("ImageType")),
        size=(int(dataset.Rows), int(dataset.get("Columns") or 0)),
        frames=whole("NumberOfFrames") or 1,
        is_enhanced=is_enhanced,
        photometric=text("PhotometricInterpretation"),
        bits=whole("BitsAllocated") or 0,
        spacing=_numbers(dataset, "PixelSpacing", 2),
        thickness=thickness[0] if thickness else None,
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        rescale=(slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
        has_lut="ModalityLUTSequence" in dataset,
        is_lossy=text("LossyImageCompression") == "01",
        problem=problem,
    )


def _numbers(dataset: Any, keyword: str, count: int) -> Numbers | None:
    """Return a decimal attribute's values; None when absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        return None
    values = tuple(
        float(one) for one in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value])
    )
    if len(values) != count or not all(math.isfinite(one) for one in values):
        raise ValueError(f"{keyword} has {len(values)} values, some perhaps not finite")
    return values


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value)


def _class_name(dataset: Any) -> str:
    """Return the name of the SOP class, empty when it is missing or private."""
    from pydicom.uid import UID

    uid = UID(str(dataset.get("SOPClassUID") or getattr(dataset.file_meta, "MediaStorageSOPClassUID", "")))
    return "" if uid.is_private or uid.name == uid else str(uid.name)


def _pixel_problem(dataset: Any, stream: BinaryIO, path: Path) -> MedvolError | None:
    """Return a refusal when the pixel data are absent or shorter than the header promises."""
    order = "<" if dataset.original_encoding[1] else ">"
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_deflated:
        return None  # a cut deflated stream has failed to inflate already
    start, size = stream.tell(), path.stat().st_size
    element = stream.read(12)
    if len(element) < 12 or struct.unpack(order + "H", element[:2])[0] != 0x7FE0:
        return _truncated(path, f"{size:,} bytes without pixel data", "an image")
    is_explicit = not dataset.original_encoding[0]
    length = struct.unpack(order + "I", element[8:12] if is_explicit else element[4:8])[0]
    if length == _UNDEFINED:
        return None  # encapsulated: its end is found when it is decoded
    available = size - start - (12 if is_explicit else 8)
    promised = int(dataset.Rows) * int(dataset.get("Columns") or 0) * int(dataset.get("BitsAllocated") or 0) // 8
    promised *= int(dataset.get("SamplesPerPixel") or 1) * int(dataset.get("NumberOfFrames") or 1)
    if "422" in str(dataset.get("PhotometricInterpretation")):
        promised = promised * 2 // 3
    if available < length or length < promised:
        return _truncated(path, f"{min(available, length):,} bytes of pixels", f"{max(length, promised):,}")
    return None


def _truncated(path: Path, found: str, expected: str) -> MedvolError:
    return MedvolError("TRUNCATED", file=path, found=found, expected=expected, fix="copy or send the file again")


def _bad(path: Path, error: Exception) -> MedvolError:
    # Only the kind of exception is shown: its text may quote a value of the header.
    return MedvolError(
        "BAD_DICOM",
        file=path,
        found=f"it cannot be read ({type(error).__name__})",
        expected="a DICOM file",
        fix="export or send the file again",
    )
