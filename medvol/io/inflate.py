"""Decompression to the very end, in bounded pieces.

A gzip member ends in a CRC and a length. Stopping once the voxels are complete, as readers like to, would skip that
check and hand out wrong voxels of a damaged file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from os import PathLike
from typing import BinaryIO

from medvol.errors import MedvolError

GZIP = 31  # window bits of zlib: 15, plus 16 for a gzip header and trailer
ZLIB = 15

_READ_BYTES = 1 << 18
_PIECE_BYTES = 1 << 21


def inflate(stream: BinaryIO, file: str | PathLike[str], window: int = GZIP) -> Iterator[bytes]:
    """Yield the decompressed bytes of all members in pieces of at most 2 MiB.

    Raises:
        MedvolError: `TRUNCATED` when the stream ends inside a member, `CORRUPT` when a checksum, a length or the
            compressed code is wrong, or when other bytes follow.
    """
    decoder, pending, complete = zlib.decompressobj(window), b"", False
    read = 0
    while data := pending or stream.read(_READ_BYTES):
        read += 0 if pending else len(data)
        pending = b""
        if complete:
            data = data.lstrip(b"\0")  # some writers pad the file with zeros
            if not data:
                continue
            decoder, complete = zlib.decompressobj(window), False
        piece = _decompress(decoder, data, file)
        if piece:
            yield piece
        complete = decoder.eof
        pending = decoder.unused_data if complete else decoder.unconsumed_tail
    # The decoder may hold back a rest of its output when a piece was full as the input ended.
    while not complete and (piece := _decompress(decoder, b"", file)):
        yield piece
        complete = decoder.eof
    if not complete:
        raise MedvolError(
            "TRUNCATED",
            file=file,
            found=f"the compressed data end after {read:,} bytes, before their checksum",
            expected="a complete stream",
            fix="copy or download the file again",
        )


def _decompress(decoder: zlib._Decompress, data: bytes, file: str | PathLike[str]) -> bytes:
    try:
        return decoder.decompress(data, _PIECE_BYTES)
    except zlib.error as error:
        raise _corrupt(file, str(error)) from error


def _corrupt(file: str | PathLike[str], reason: str) -> MedvolError:
    return MedvolError(
        "CORRUPT",
        file=file,
        found=f"the compressed data are damaged ({reason})"[:120],
        expected="a stream that agrees with its checksum",
        fix="copy or download the file again",
    )
