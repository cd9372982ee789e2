"""Comments inside compressed frames: JPEG, JPEG-LS and JPEG 2000 have room for text that no attribute shows.

The bytes of comments are set to zero where they stand, so that no length changes and the pixels decode as before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_ITEM = b"\xfe\xff\x00\xe0"
_JPEG, _JPEG_2000 = b"\xff\xd8\xff", b"\xff\x4f\xff"
_COMMENT, _COMMENT_2000 = 0xFE, 0x64
_SCAN, _TILE, _END = 0xDA, 0x90, 0xD9

# Application data that a decoder reads: JFIF, the colours of SPIFF and of HP's JPEG-LS, Adobe's colour transform.
_NEEDED = (0xE0, 0xE8, 0xEE)


def blank_comments(encapsulated: bytes) -> bytes:
    """Return encapsulated pixel data (PS3.5 A.4) without the comments in the headers of its frames."""
    data = bytearray(encapsulated)
    for start, end in _fragments(encapsulated):
        if data[start : start + 3] == _JPEG:
            _blank(data, start, end, is_2000=False)
        elif data[start : start + 3] == _JPEG_2000:
            _blank(data, start, end, is_2000=True)
    return bytes(data)


def _fragments(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while data[at : at + 4] == _ITEM and at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield at + 8, min(at + 8 + length, len(data))
        at += 8 + length


def _blank(data: bytearray, start: int, end: int, *, is_2000: bool) -> None:
    at = start + 2
    while at + 4 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in (_SCAN, _TILE, _END):
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        is_comment = marker == (_COMMENT_2000 if is_2000 else _COMMENT)
        if is_comment or (not is_2000 and 0xE0 <= marker <= 0xEF and marker not in _NEEDED):
            stop = min(at + 2 + length, end)
            data[at + 4 : stop] = bytes(max(stop - at - 4, 0))
        at += 2 + max(length, 2)
