"""Opening DICOM files: whatever pydicom raises becomes one refusal, and no file expands without a limit."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from medvol.errors import MedvolError

INFLATE_LIMIT = 1 << 30
"""Most bytes that a deflated DICOM file may expand to; a real one holds tens of megabytes."""

_UNDEFINED = 0xFFFFFFFF
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@contextmanager
def no_quotes() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the header, out of logs."""
    logger = logging.getLogger("pydicom")  # gets every warning as well, past the filter of warnings
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


@contextmanager
def dicom_errors(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises into a refusal, without quotes."""
    try:
        with no_quotes():
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
    stream.seek(0)
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


def pixel_place(dataset: Any, stream: BinaryIO, path: Path) -> tuple[tuple[int, int], MedvolError | None]:
    """Return where native pixels or the fragments of compressed ones start, 0 for what pydicom must find.

    With a refusal when pixels are absent or shorter than the header promises.
    """
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_deflated:
        return (0, 0), None  # a cut deflated stream has failed to inflate already
    start, size = stream.tell(), path.stat().st_size
    element = stream.read(12)
    if len(element) < 12 or struct.unpack(order + "H", element[:2])[0] != 0x7FE0:
        return (0, 0), truncated(path, f"{size:,} bytes without pixel data", "an image")
    length = struct.unpack(order + "I", element[4:8] if implicit else element[8:12])[0]
    begin = start + (8 if implicit else 12)
    if (length == _UNDEFINED) != (syntax is not None and syntax.is_encapsulated):
        # pydicom would hand out the bytes of the one as the pixels of the other.
        found = "compressed pixels, not so by its transfer syntax" if length == _UNDEFINED else "pixels not compressed"
        return (0, 0), _contradiction(path, found)
    if length == _UNDEFINED:
        return (0, begin), None  # encapsulated: its end is found when it is decoded
    promised = int(dataset.Rows) * int(dataset.get("Columns") or 0) * int(dataset.get("BitsAllocated") or 0) // 8
    promised *= int(dataset.get("SamplesPerPixel") or 1) * int(dataset.get("NumberOfFrames") or 1)
    if "422" in str(dataset.get("PhotometricInterpretation")):
        promised = promised * 2 // 3
    if size - begin < length or length < promised:
        found = f"{min(size - begin, length):,} bytes of pixels"
        return (0, 0), truncated(path, found, f"{max(length, promised):,}")
    is_native = (
        little and struct.unpack("<H", element[2:4])[0] == 0x0010 and int(dataset.get("SamplesPerPixel") or 1) == 1
    )
    return (begin if is_native else 0, 0), None


def truncated(path: Path, found: str, expected: str) -> MedvolError:
    """Return the refusal of a file that ends before its header or its pixels do."""
    return MedvolError("TRUNCATED", file=path, found=found, expected=expected, fix="copy or send the file again")


def _contradiction(path: Path, found: str) -> MedvolError:
    return MedvolError(
        "BAD_DICOM",
        file=path,
        found=found,
        expected="pixels as the transfer syntax says",
        fix="export or send the file again",
    )


def _bad(path: Path, error: Exception) -> MedvolError:
    # Only the kind of exception is shown: its text may quote a value of the header.
    return MedvolError(
        "BAD_DICOM",
        file=path,
        found=f"it cannot be read ({type(error).__name__})",
        expected="a DICOM file",
        fix="export or send the file again",
    )
