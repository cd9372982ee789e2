"""NumPy files: no pickle, the header checked against the file's size, one row read without its neighbours."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.options import ReadOptions, assumed_affine
from medvol.io.reference import Reference
from medvol.io.voxels import Array, require_size, settle_axes, settle_values

NO_GEOMETRY_NOTE = "the format has no geometry: the volume lives in voxel space"


@dataclass(frozen=True)
class NpyHeader:
    """What precedes the values of an array.

    Args:
        shape: Lengths of the axes.
        dtype: As stored, with its byte order.
        is_fortran: Whether the first axis is the fastest.
        offset: First byte of the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    offset: int

    @property
    def value_bytes(self) -> int:
        """Bytes that the values take."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(reference: Reference, options: ReadOptions) -> Volume:
    """Read an array, or one row of a stacked array, from a .npy file.

    Raises:
        MedvolError: `UNSAFE_NPY`, `TRUNCATED`, `NOT_NPY`, `BAD_REFERENCE`, `TOO_LARGE`, `WRONG_DIMS`, `BAD_DTYPE` or
            `NONFINITE`.
    """
    path = reference.path
    with path.open("rb") as stream:
        header = parse_npy_header(stream, path)
    size = path.stat().st_size
    if size < header.offset + header.value_bytes:
        raise MedvolError(
            "TRUNCATED",
            file=path,
            found=f"{size:,} bytes",
            expected=f"{header.offset + header.value_bytes:,} for shape {header.shape} of {header.dtype}",
            fix="copy or save the array again",
        )
    order = "F" if header.is_fortran else "C"
    if header.value_bytes == 0:
        stacked: Array = np.empty(header.shape, dtype=header.dtype)
    else:
        stacked = np.memmap(path, header.dtype, "r", header.offset, header.shape, order)  # type: ignore[call-overload]
    picked = take_row(stacked, reference)
    require_size(picked.nbytes, path, options)
    return array_volume(np.array(picked), reference, options)


def parse_npy_header(stream: BinaryIO, file: Path) -> NpyHeader:
    """Return the header at the start of a stream.

    Raises:
        MedvolError: `NOT_NPY`, `TRUNCATED` or, for an array of Python objects, `UNSAFE_NPY`.
    """
    try:
        version = np.lib.format.read_magic(stream)
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = parse(stream)
    except (zipfile.BadZipFile, zlib.error):
        raise  # damage of the archive around the array, which its reader reports
    except Exception as error:  # NumPy parses the header as Python source, and damage meets every kind of exception
        code = "TRUNCATED" if "EOF" in str(error) else "NOT_NPY"
        raise MedvolError(
            code,
            file=file,
            found=f"a header that cannot be read ({type(error).__name__})",
            expected="an array written by numpy.save",
            fix="save the array again",
        ) from error
    if dtype.hasobject:
        raise unsafe(file)
    if any(length < 0 for length in shape) or dtype.itemsize == 0:
        raise MedvolError("NOT_NPY", file=file, found=f"shape {shape} of {dtype}"[:80], expected="an array of numbers")
    return NpyHeader(tuple(int(length) for length in shape), dtype, bool(is_fortran), stream.tell())


def take_row(stacked: Array, reference: Reference) -> Array:
    """Return the row that a reference names, or the whole array where it names none.

    Raises:
        MedvolError: `BAD_REFERENCE` when there is no such row.
    """
    if reference.index is None:
        return stacked
    if stacked.ndim < 2 or reference.index >= len(stacked):
        rows = len(stacked) if stacked.ndim else 0
        raise MedvolError(
            "BAD_REFERENCE",
            file=reference.text,
            found=f"row {reference.index} of an array of shape {stacked.shape}",
            expected=f"a row from 0 to {rows - 1}" if stacked.ndim > 1 else "a stacked array",
        )
    return np.asarray(stacked[reference.index])


def array_volume(array: Array, reference: Reference, options: ReadOptions) -> Volume:
    """Return the volume of an array that was read from a format without a geometry.

    With `assume_spacing_mm` the volume gets that spacing on RAS axes, and a note.
    """
    array, channel_axis, axis_notes = settle_axes(array, reference.path, options)
    array, value_notes = settle_values(array, reference.path, options)
    spacing = options.assume_spacing_mm
    affine, note = np.eye(4), NO_GEOMETRY_NOTE
    if spacing is not None:
        affine, note = assumed_affine(spacing)
    return Volume(
        array=array,
        affine=affine,
        has_geometry=spacing is not None,
        source=reference.text,
        channel_axis=channel_axis,
        notes=(note, *axis_notes, *value_notes),
    )


def unsafe(file: Path) -> MedvolError:
    """Return the refusal of an array whose reading would execute code."""
    return MedvolError(
        "UNSAFE_NPY",
        file=file,
        found="an array of Python objects (pickle), which can execute code when read",
        expected="an array of numbers",
        fix="save it with allow_pickle=False, lists of unequal arrays as one file each",
    )
