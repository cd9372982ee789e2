"""The stored numbers of DICOM slices, rescaled to what they mean (Hounsfield units in CT)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.dicom_header import SliceHeader, check_inflated_size, dicom_errors

_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ModalityLUTSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept"),
)
_INT16 = np.iinfo(np.int16)


def read_stack(slices: Sequence[SliceHeader]) -> npt.NDArray[Any]:
    """Return the values of slices as an array of shape (slice, row, column).

    The type is int16 where every slope is 1 and every value fits, else float32.

    Raises:
        MedvolError: `NEED_CODEC`, `BAD_DICOM`, `TRUNCATED` or `NONFINITE`.
    """
    rows, columns = slices[0].size
    stack: npt.NDArray[Any] = np.empty((len(slices), rows, columns), dtype=np.int16)
    for index, one in enumerate(slices):
        values = _values(one)
        if stack.dtype == np.int16 and not _fits(values):
            stack = stack.astype(np.float32)
        with np.errstate(over="ignore"):
            stack[index] = values
        if stack.dtype == np.float32 and not np.isfinite(stack[index]).all():
            raise MedvolError("NONFINITE", file=one.path, found="values beyond 32-bit floating point after the rescale")
    return stack


def pixel_fingerprint(one: SliceHeader) -> tuple[str, tuple[float, float]]:
    """Return what tells two images at one place apart: a hash of the stored pixels, and the rescale.

    Raises:
        MedvolError: `BAD_DICOM`.
    """
    dataset = _read(one.path)
    with dicom_errors(one.path):
        return hashlib.blake2b(dataset.PixelData, digest_size=16).hexdigest(), one.rescale


def _fits(values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind not in "iu":
        return False
    return bool(int(values.min()) >= _INT16.min and int(values.max()) <= _INT16.max)


def _values(one: SliceHeader) -> npt.NDArray[Any]:
    """Return one slice, shape (row, column), after its modality transform."""
    dataset = _read(one.path)
    _require_codec(dataset, one.path)
    with dicom_errors(one.path):
        stored: npt.NDArray[Any] = dataset.pixel_array
        if stored.shape != one.size:
            raise ValueError("another shape than the header's")
        if one.has_lut:
            from pydicom.pixels import apply_modality_lut

            return np.asarray(apply_modality_lut(stored, dataset))
    slope, intercept = one.rescale
    if slope == 1 and float(intercept).is_integer() and abs(intercept) < 1 << 30:
        return stored if intercept == 0 else stored.astype(np.int64) + int(intercept)
    return stored * np.float64(slope) + np.float64(intercept)


def _read(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with dicom_errors(path), path.open("rb") as stream:
        check_inflated_size(stream, path)
        dataset = dcmread(stream, force=True, specific_tags=list(_TAGS))
        if "TransferSyntaxUID" not in dataset.file_meta:
            is_implicit, is_little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
        if "PixelData" not in dataset:
            raise MedvolError(
                "TRUNCATED", file=path, found="no complete pixel data", expected="an image", fix="send the file again"
            )
        return dataset


def _require_codec(dataset: Any, path: Path) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    with dicom_errors(path):
        if syntax.is_encapsulated and not get_decoder(syntax).is_available:
            raise MedvolError(
                "NEED_CODEC",
                file=path,
                found=f"compression {syntax.name}"[:80],
                expected="an installed decoder",
                fix="pip install python-gdcm",
            )
