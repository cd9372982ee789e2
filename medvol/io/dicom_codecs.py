"""Decoding compressed frames: imagecodecs where it is installed, which lets threads run, else pydicom's own plugins."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_stored import Stored

# Transfer syntaxes by what decodes them; 8-bit JPEG is left to pydicom.
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
_BY_IMAGECODECS = {
    _JPEG_12_BIT: "jpeg",
    **dict.fromkeys(_JPEG_LOSSLESS, "ljpeg"),
    **dict.fromkeys(_JPEG_LS, "jpegls"),
    **dict.fromkeys(_JPEG_2000, "jpeg2k"),
}


_J2K_START = b"\xff\x4f\xff\x51"  # start of the codestream, then its size
_JPEG_FRAMES = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}  # of DCT, lossless and JPEG-LS


def codec_problem(one: SliceHeader) -> MedvolError | None:
    """Return the refusal of a compression that nothing installed decodes, naming what to install."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    syntax = UID(one.syntax)
    if not one.syntax or not syntax.is_transfer_syntax or not syntax.is_encapsulated or releases_the_lock(one.syntax):
        return None
    try:
        plugins = set(get_decoder(syntax).available_plugins)
        if one.syntax == _JPEG_12_BIT and one.stored.bits_stored > 8:
            plugins -= {"pillow"}  # which claims it and reads 8 bits only
        if plugins:
            return None
    except NotImplementedError:  # a compression that pydicom does not know, such as video
        pass
    package = "imagecodecs, the extra 'codecs'" if one.syntax in _BY_IMAGECODECS else "pylibjpeg pylibjpeg-libjpeg"
    return MedvolError(
        "NEED_CODEC",
        file=one.path,
        found=f"compression {syntax.name}"[:80],
        expected="an installed decoder",
        fix=f"pip install {package}",
    )


def releases_the_lock(syntax: str) -> bool:
    """Tell whether frames of a transfer syntax are decoded without holding Python's lock."""
    return syntax in _BY_IMAGECODECS and find_spec("imagecodecs") is not None


def decode_by_pydicom(dataset: Any, one: SliceHeader) -> npt.NDArray[Any]:
    """Return the stored values of one frame of any encoding, shape (row, column).

    Raises:
        Exception: Whatever the decoder raises on damaged data.
    """
    from pydicom.pixels import pixel_array

    return np.asarray(pixel_array(dataset, index=one.frame))


def frames_of(dataset: Any, one: SliceHeader) -> list[bytes]:
    """Return the compressed frames of a file.

    Raises:
        ValueError: When there are more or fewer than the header says: which ones are missing cannot be known.
        Exception: Whatever pydicom raises on damaged data.
    """
    from pydicom.encaps import generate_frames

    tables = None
    if "ExtendedOffsetTable" in dataset:
        tables = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    frames = list(generate_frames(dataset.PixelData, number_of_frames=one.frames, extended_offsets=tables))
    if len(frames) != one.frames:
        raise ValueError("another number of frames than the header's")
    return frames


def read_only_frame(one: SliceHeader) -> bytes:
    """Return the compressed frame of a file of one frame, whose fragments start at a known place.

    Raises:
        Exception: Whatever pydicom raises on damaged data.
    """
    from pydicom.encaps import get_frame

    with one.path.open("rb") as stream:
        stream.seek(one.stored.fragments)
        return get_frame(stream.read(), 0, number_of_frames=1)


def decode_frame(frame: bytes, one: SliceHeader) -> npt.NDArray[Any]:
    """Return the stored values of one compressed frame, shape (row, column), without holding Python's lock.

    Raises:
        ValueError: When the frame is of another size than the header says; before any memory is taken for it.
        Exception: Whatever the decoder raises on damaged data.
    """
    if (stated := stated_size(frame)) is not None and stated != one.size:
        raise ValueError("another size than the header's")
    decode: Callable[[bytes], npt.NDArray[Any]] = getattr(
        import_module("imagecodecs"), f"{_BY_IMAGECODECS[one.syntax]}_decode"
    )
    return extract_bits(decode(frame), one.stored)


def stated_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; None when they are not found.

    Decoders take memory for whatever a stream states, and a stream of a few kilobytes may state gigabytes.
    """
    at = frame.find(_J2K_START, 0, 200)
    try:
        if at >= 0:
            right, lower, left, upper = struct.unpack_from(">4I", frame, at + 8)
            return lower - upper, right - left
        at = 2
        while frame[:2] == b"\xff\xd8":
            mark, length = struct.unpack_from(">HH", frame, at)
            if mark in _JPEG_FRAMES:
                rows, columns = struct.unpack_from(">HH", frame, at + 5)
                return (rows, columns) if rows else None
            at += 2 + length
    except struct.error:
        pass
    return None


def extract_bits(values: npt.NDArray[Any], stored: Stored) -> npt.NDArray[Any]:
    """Return the values that the stored bits of 8-bit or 16-bit integers mean: overlays cut off, the sign extended."""
    if values.dtype.itemsize > 2 or values.dtype.kind not in "iu":
        raise ValueError("more bits than the header states")
    kind = "i" if stored.is_signed else "u"
    width = 8 * values.dtype.itemsize
    values = values.view(f"{kind}{values.dtype.itemsize}")
    above = width - 1 - stored.high_bit
    unused = width - stored.bits_stored
    if unused <= 0 and above <= 0:
        return values
    if not 0 <= above <= unused:
        raise ValueError("stored bits beyond the allocated ones")
    return (values << above) >> unused
