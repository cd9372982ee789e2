"""The stored numbers of DICOM slices, rescaled to what they mean (Hounsfield units in CT).

The rescale is that of the header, slice by slice and frame by frame; the private scale of Philips is not applied.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.dicom_codecs import (
    decode_by_pydicom,
    decode_frame,
    extract_bits,
    frames_of,
    read_only_frame,
    releases_the_lock,
)
from medvol.io.dicom_file import check_inflated_size, dicom_errors, truncated
from medvol.io.dicom_header import SliceHeader

_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ModalityLUTSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept"),
)
_INT16 = np.iinfo(np.int16)
_AHEAD = 32
"""Slices decoded ahead of the stack: enough for every thread, little beside the volume."""

Array = npt.NDArray[Any]
_Decoded = tuple[SliceHeader, Array, Array]


def read_stack(slices: Sequence[SliceHeader], pad_to: float | None = None) -> tuple[Array, tuple[str, ...]]:
    """Return the values of slices as an array of shape (slice, row, column), and a note on padding.

    The type is int16 where every slope is 1 and every value fits, else float32.

    Args:
        slices: In the order of the result.
        pad_to: Value for voxels that the header calls padding; None leaves what is stored.

    Raises:
        MedvolError: `NEED_CODEC`, `BAD_DICOM`, `TRUNCATED` or `NONFINITE`.
    """
    rows, columns = slices[0].size
    stack: Array = np.empty((len(slices), rows, columns), dtype=np.int16)
    padded = 0
    for index, (one, stored, rescaled) in enumerate(_decoded(slices)):
        values = rescaled
        mask = _padding(one, stored)
        if mask is not None:
            padded += int(mask.sum())
            values = rescaled if pad_to is None else _fill(rescaled, mask, pad_to)
        if stack.dtype == np.int16 and values.dtype != np.int16:
            stack = stack.astype(np.float32)
        with np.errstate(over="ignore"):
            stack[index] = values
        if values.dtype.kind == "f" and not np.isfinite(stack[index]).all():
            raise MedvolError("NONFINITE", file=one.path, found="values beyond 32-bit floating point after the rescale")
    if not padded:
        return stack, ()
    done = "left as stored" if pad_to is None else f"set to {pad_to:g}"
    return stack, (f"{padded / stack.size:.1%} of the voxels are padding, {done}",)


def pixel_fingerprint(one: SliceHeader) -> tuple[str, tuple[float, float]]:
    """Return what tells two images at one place apart: a hash of the stored pixels, and the rescale.

    Raises:
        MedvolError: `BAD_DICOM`.
    """
    if one.frames > 1:
        ((_, stored, _),) = _decoded([one])
        return hashlib.blake2b(stored.tobytes(), digest_size=16).hexdigest(), one.rescale
    dataset = _read(one.path)
    with dicom_errors(one.path):
        return hashlib.blake2b(dataset.PixelData, digest_size=16).hexdigest(), one.rescale


def _decoded(slices: Sequence[SliceHeader]) -> Iterator[_Decoded]:
    """Yield each slice with its stored and its rescaled values.

    Threads read and decode ahead what can be read without pydicom's dataset or Python's lock.
    """
    waiting: deque[tuple[SliceHeader, Future[_Decoded] | Callable[[], _Decoded]]] = deque()
    files = _Files()
    # Silencing warnings is not safe in several threads at once: here it is done once for all of them.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in slices:
            with dicom_errors(one.path):
                waiting.append((one, _begin(one, pool, files)))
            if len(waiting) > _AHEAD:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())


def _begin(one: SliceHeader, pool: ThreadPoolExecutor, files: _Files) -> Future[_Decoded] | Callable[[], _Decoded]:
    """Start reading a slice in a thread, or return what reads it."""
    if not one.has_lut and one.stored.offset:
        return pool.submit(lambda: _values(one, _native(one)))
    if not one.has_lut and releases_the_lock(one.syntax):
        if one.frames == 1 and one.stored.fragments:
            return pool.submit(lambda: _values(one, _of_size(decode_frame(read_only_frame(one), one), one)))
        frame = files.frames(one)[one.frame]
        return pool.submit(lambda: _values(one, _of_size(decode_frame(frame, one), one)))
    return lambda: _values(one, _of_size(files.decode(one), one), files.dataset(one.path))


def _finish(one: SliceHeader, job: Future[_Decoded] | Callable[[], _Decoded]) -> _Decoded:
    with dicom_errors(one.path):
        return job.result() if isinstance(job, Future) else job()


@final
class _Files:
    """The files with several frames, and the last other one, opened once each."""

    def __init__(self) -> None:
        self._datasets: dict[Path, Any] = {}
        self._frames: dict[Path, list[bytes]] = {}

    def dataset(self, path: Path) -> Any:
        """Return what pydicom reads of a file."""
        if path not in self._datasets:
            for other in [known for known, dataset in self._datasets.items() if not _is_multiframe(dataset)]:
                del self._datasets[other]
            self._datasets[path] = _read(path)
        return self._datasets[path]

    def frames(self, one: SliceHeader) -> list[bytes]:
        """Return the compressed frames of a file."""
        if one.path not in self._frames:
            found = frames_of(_read(one.path), one)
            if one.frames == 1:
                return found
            self._frames[one.path] = found
        return self._frames[one.path]

    def decode(self, one: SliceHeader) -> Array:
        """Return the stored values of a frame that imagecodecs does not decode."""
        if releases_the_lock(one.syntax):
            return decode_frame(self.frames(one)[one.frame], one)
        return decode_by_pydicom(self.dataset(one.path), one)


def _is_multiframe(dataset: Any) -> bool:
    return int(dataset.get("NumberOfFrames") or 1) > 1


def _native(one: SliceHeader) -> Array:
    """Return the stored values of uncompressed little-endian pixels."""
    rows, columns = one.size
    width = one.stored.bits_allocated // 8
    length = rows * columns * width
    data = np.empty(length, np.uint8)
    with one.path.open("rb", buffering=0) as stream:
        stream.seek(one.stored.offset + one.frame * length)
        if stream.readinto(data.data) != length:
            raise truncated(one.path, "fewer pixels than when its header was read", f"{length:,} bytes")
    return extract_bits(data.view(f"<u{width}").reshape(rows, columns), one.stored)


def _of_size(stored: Array, one: SliceHeader) -> Array:
    if stored.shape != one.size:
        raise ValueError("another shape than the header's")
    return stored


def _padding(one: SliceHeader, stored: Array) -> npt.NDArray[np.bool_] | None:
    if one.stored.padding is None:
        return None
    low, high = one.stored.padding
    return np.asarray((stored >= low) & (stored <= high))


def _fill(values: Array, mask: npt.NDArray[np.bool_], pad_to: float) -> Array:
    """Return the values with the padding replaced, int16 where both are."""
    is_small = float(pad_to).is_integer() and _INT16.min <= pad_to <= _INT16.max
    return np.where(mask, np.int16(pad_to) if is_small else np.float64(pad_to), values)


def _values(one: SliceHeader, stored: Array, dataset: Any = None) -> _Decoded:
    """Return one slice with its values after the modality transform: int16 where they fit, else floating point."""
    if one.has_lut and dataset is not None:
        from pydicom.pixels import apply_modality_lut

        return one, stored, _narrow(np.asarray(apply_modality_lut(stored, dataset)), 0)
    slope, intercept = one.rescale
    if slope == 1 and float(intercept).is_integer() and abs(intercept) < 1 << 30:
        return one, stored, _narrow(stored, int(intercept))
    return one, stored, stored * np.float64(slope) + np.float64(intercept)


def _narrow(values: Array, intercept: int) -> Array:
    """Return `values + intercept` as int16 where all of them fit, else as float64."""
    if values.dtype.kind not in "iu":
        return values
    low, high = int(values.min()) + intercept, int(values.max()) + intercept
    if low < _INT16.min or high > _INT16.max:
        return values.astype(np.float64) + intercept
    # The sum fits, so it is right modulo 2**16, in which int16 arrays wrap without a word.
    narrow = values.view(np.int16) if values.dtype == np.uint16 else values.astype(np.int16, copy=False)
    return narrow if intercept == 0 else narrow + np.array(intercept, np.int64).astype(np.int16)


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
            raise truncated(path, "no complete pixel data", "an image")
        return dataset
