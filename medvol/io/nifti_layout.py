"""What the header of a NIfTI file says about its voxels, checked before a byte of them is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.io.options import ReadOptions
from medvol.io.voxels import require_size

HEAD_BYTES = 544  # a NIfTI-2 header and its extension flag; NIfTI-1 takes 352

_MAGIC_AT = {348: 344, 540: 4}
_FEWEST_OFFSET = {348: 352, 540: 544}
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED_TYPES = {1: "1-bit", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256"}
_REFUSED_TYPES[2304] = "RGBA"


@dataclass(frozen=True)
class Layout:
    """Where the voxels lie in the decompressed file.

    Args:
        header: nibabel's header object; geometry and scaling are read from it.
        shape: Voxels along each stored axis, first fastest.
        dtype: As stored, with its byte order.
        offset: First byte of the voxels.
    """

    header: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def voxel_bytes(self) -> int:
        """Bytes that the voxels take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of a complete file."""
        return self.offset + self.voxel_bytes


def header_kind(head: bytes) -> tuple[int, str] | None:
    """Return the header's size (348 or 540) and byte order (`<` or `>`), or None for something else."""
    for size, position in _MAGIC_AT.items():
        for order, name in (("<", "little"), (">", "big")):
            starts = head[:4] == size.to_bytes(4, name)  # type: ignore[arg-type]
            if starts and head[position : position + 2] in (b"n+", b"ni"):
                return size, order
    return None


def parse_layout(head: bytes, file: str | PathLike[str], options: ReadOptions) -> Layout:
    """Return the layout that a header describes.

    Args:
        head: The first 544 bytes of the decompressed file, or all of a shorter one.
        file: For the message.
        options: The limit on decoded bytes.

    Raises:
        MedvolError: `NOT_NIFTI`, `TRUNCATED`, `BAD_HEADER`, `BAD_DTYPE` or `TOO_LARGE`.
    """
    kind = header_kind(head)
    if kind is None:
        raise not_nifti(head, file)
    size, order = kind
    position = _MAGIC_AT[size]
    if head[position : position + 2] == b"ni":
        raise MedvolError(
            "NOT_NIFTI",
            file=file,
            found="a header whose voxels lie in another file (.hdr/.img pair)",
            expected="one .nii or .nii.gz file",
            fix="convert the pair to .nii.gz",
        )
    if len(head) < size:
        raise MedvolError(
            "TRUNCATED",
            file=file,
            found=f"{len(head)} bytes",
            expected=f"a header of {size}",
            fix="copy the file again",
        )
    header = _nibabel_header(head[:size], size, order)
    shape = _shape(header, file)
    layout = Layout(header, shape, _dtype(header, order, file), _offset(header, size, file))
    require_size(layout.total_bytes, file, options)
    return layout


def scaling(layout: Layout, file: str | PathLike[str]) -> tuple[float, float] | None:
    """Return slope and intercept, or None where the stored values are the values (nibabel's rule for 0 and NaN).

    Raises:
        MedvolError: `BAD_HEADER` when a valid slope comes with an intercept that is not finite.
    """
    slope, intercept = float(layout.header["scl_slope"]), float(layout.header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return None
    if not math.isfinite(intercept):
        raise _bad_header(file, f"scl_slope {slope:g} with scl_inter {intercept}", "a finite intercept")
    return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


def not_nifti(head: bytes, file: str | PathLike[str]) -> MedvolError:
    """Return the refusal of a file that is no NIfTI, saying what it looks like."""
    return MedvolError(
        "NOT_NIFTI",
        file=file,
        found=looks_like(head),
        expected="a NIfTI-1 or NIfTI-2 file",
        fix="download or convert it again",
    )


def looks_like(head: bytes) -> str:
    """Return words for what a file's first bytes look like."""
    if not head:
        return "an empty file"
    if head[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")):
        return "it looks like HTML, perhaps the error page of a download"
    if head[:4] in ((348).to_bytes(4, "little"), (348).to_bytes(4, "big")):
        return "no NIfTI magic; it looks like ANALYZE 7.5, which has no orientation"
    return "other content, beginning with bytes " + head[:8].hex(" ")


def _nibabel_header(head: bytes, size: int, order: str) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    return (Nifti1Header if size == 348 else Nifti2Header)(head, endianness=order, check=False)


def _shape(header: Any, file: str | PathLike[str]) -> tuple[int, ...]:
    dims = [int(length) for length in header["dim"]]
    count = dims[0]
    if not 1 <= count <= 7 or any(length < 1 for length in dims[1 : count + 1]):
        raise _bad_header(file, f"dim {dims}", "1 to 7 axes of at least one voxel")
    return tuple(dims[1 : count + 1])


def _dtype(header: Any, order: str, file: str | PathLike[str]) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _REFUSED_TYPES:
        raise MedvolError(
            "BAD_DTYPE",
            file=file,
            found=f"voxels of type {_REFUSED_TYPES[code]}",
            expected="integers or real numbers of at most 64 bits",
            fix="save magnitude or channels as plain numbers",
        )
    if code not in _TYPES:
        raise _bad_header(file, f"datatype {code}", "a type of the NIfTI standard")
    dtype = np.dtype(order + _TYPES[code])
    if bits != 8 * dtype.itemsize:
        raise _bad_header(file, f"bitpix {bits} for datatype {code}", f"{8 * dtype.itemsize}")
    return dtype


def _offset(header: Any, size: int, file: str | PathLike[str]) -> int:
    offset = float(header["vox_offset"])
    if offset == 0:
        return _FEWEST_OFFSET[size]  # a common omission; the standard leaves no other place
    if not math.isfinite(offset) or offset != int(offset) or offset < _FEWEST_OFFSET[size]:
        raise _bad_header(file, f"vox_offset {offset:g}", f"a whole number from {_FEWEST_OFFSET[size]}")
    return int(offset)


def _bad_header(file: str | PathLike[str], found: str, expected: str) -> MedvolError:
    return MedvolError(
        "BAD_HEADER", file=file, found=found, expected=expected, fix="write the file again from its source"
    )
